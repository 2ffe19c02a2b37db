#!/usr/bin/env bash
# Leave samples out of data.sources by the rules of the section `curate`, one task per node:
#   sbatch slurm/curate.sh CONFIG [section.key=value ...]
#   sbatch --nodes=4 --cpus-per-task=64 slurm/curate.sh openclipart curate.same_text=20
# Options of sbatch overrule this header. Shards that were looked at stay: what was stopped goes on.
#SBATCH --job-name=curate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# sbatch runs a copy of this file from its spool folder, so its own path does not tell where we are.
export ROSEATE_HOME=${ROSEATE_HOME:-$SLURM_SUBMIT_DIR}
if [[ ! -f $ROSEATE_HOME/slurm/job.sh ]]; then
  echo "no slurm/job.sh in $ROSEATE_HOME: run sbatch from the checkout, or export ROSEATE_HOME" >&2
  exit 2
fi
# shellcheck source=slurm/job.sh
source "$ROSEATE_HOME/slurm/job.sh"
start_job
(($# > 0)) || fail "which run? sbatch slurm/curate.sh CONFIG [section.key=value ...]"

# The tasks divide the shards by their SLURM_PROCID, and the first decides when all are looked at.
run_over_shards "were looked at" curate "$@"
