#!/usr/bin/env bash
# Evaluate the newest checkpoint of a run, on one task with one GPU:
#   sbatch slurm/evaluate.sh CONFIG [section.key=value ...]
#   sbatch --dependency=afterok:JOB slurm/evaluate.sh CONFIG        once that training is done
# Options of sbatch overrule this header.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
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
(($# > 0)) || fail "which run? sbatch slurm/evaluate.sh CONFIG [section.key=value ...]"

code=0
srun --ntasks=1 "$ROSEATE_PYTHON" -m pipeline evaluate "$@" || code=$?
say "evaluation ended with exit code $code"
exit "$code"
