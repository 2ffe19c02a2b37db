#!/usr/bin/env bash
# Run the frozen image tower once over all training images, one task per GPU, for data.features:
#   sbatch slurm/features.sh CONFIG data.features=FOLDER [section.key=value ...]
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 slurm/features.sh openclipart ...
# Options of sbatch overrule this header. Shards that are written stay: what was stopped goes on.
#SBATCH --job-name=features
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
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
(($# > 0)) || fail "which run? sbatch slurm/features.sh CONFIG [section.key=value ...]"

# The tasks divide the shards by their SLURM_PROCID and share nothing else: a killed one leaves only
# the shard it was at.
run_over_shards "are written" features "$@"
