#!/usr/bin/env bash
# Evaluate a checkpoint, by default the newest of a run, on one task with one GPU:
#   sbatch slurm/evaluate.sh CHECKPOINT [--suite NAME,NAME] [section.key=value ...]
#   sbatch --nodes=2 --ntasks-per-node=4 slurm/evaluate.sh CHECKPOINT ...    the samples divided over 8
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

nodes=${SLURM_JOB_NUM_NODES:-1}
tasks_per_node=${SLURM_NTASKS_PER_NODE:-1}
tasks=$((nodes * tasks_per_node))
command=("$ROSEATE_PYTHON" -m pipeline evaluate "$@")
if ((tasks > 1)); then
  # The tasks divide the samples. Where SLURM shows each one GPU alone, that is number 0 of the task.
  WORLD_SIZE=$tasks MASTER_ADDR=$(node_address "$(first_node)") MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
  export WORLD_SIZE MASTER_ADDR MASTER_PORT
  # shellcheck disable=SC2016
  task='
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    [[ -n ${CUDA_VISIBLE_DEVICES-} && $CUDA_VISIBLE_DEVICES != *,* ]] && LOCAL_RANK=0
    exec "$@"'
  command=(bash -c "$task" task "${command[@]}")
fi

code=0
(run_step --nodes="$nodes" --ntasks="$tasks" --kill-on-bad-exit=1 -- "${command[@]}") || code=$?
say "evaluation ended with exit code $code"
exit "$code"
