#!/usr/bin/env bash
# Train one run, one task per GPU:
#   sbatch slurm/pretrain.sh CONFIG [section.key=value ...]
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 slurm/pretrain.sh openclipart optim.lr=1e-4
# Options of sbatch overrule this header; ntasks-per-node is to equal gpus-per-node.
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
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
(($# > 0)) || fail "which run? sbatch slurm/pretrain.sh CONFIG [section.key=value ...]"

# All mistakes in seconds and once, before the tasks start. Only CONFIG and overrides concern the check.
check=("$1")
for argument in "${@:2}"; do
  [[ $argument == -* || $argument != *=* ]] || check+=("$argument")
done
"$ROSEATE_PYTHON" -m pipeline config check "${check[@]}" --world-size "$SLURM_NTASKS"

MASTER_ADDR=$(node_address "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)")
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) WORLD_SIZE=$SLURM_NTASKS

# A stop request reaches the tasks as a file and not as a signal: a rank that gets the signal before
# it has a handler would die of it, and take the others with it.
export ROSEATE_STOP_FILE=$job_folder/stop-${SLURM_RESTART_COUNT:-0}
export ROSEATE_REQUEUE_MARKER=$job_folder/requeue
rm -f "$ROSEATE_STOP_FILE" "$ROSEATE_REQUEUE_MARKER"
# USR1 comes 180 s before the time limit or by `scancel --batch --signal=USR1`, TERM by preemption.
trap 'say "stop request, saving"; touch "$ROSEATE_STOP_FILE"' USR1 TERM

say "$SLURM_NTASKS tasks, first at $MASTER_ADDR:$MASTER_PORT"
# Where SLURM shows each task one GPU alone, that GPU is number 0 of the task.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 --wait=600 bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
  [[ -n ${CUDA_VISIBLE_DEVICES-} && $CUDA_VISIBLE_DEVICES != *,* ]] && LOCAL_RANK=0
  exec "$@"' task "$ROSEATE_PYTHON" -m pipeline train "$@" &
code=0
wait_through_signals $! || code=$?

say "training ended with exit code $code"
if ((code == 0)) && [[ -e $ROSEATE_REQUEUE_MARKER ]]; then
  rm -f "$ROSEATE_REQUEUE_MARKER" "$ROSEATE_STOP_FILE"
  requeue_or_exit
fi
exit "$code"
