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

# shellcheck source=slurm/attempts.sh
source "$ROSEATE_HOME/slurm/attempts.sh"

# A stop request reaches the tasks as a file and not as a signal: a rank that gets the signal before
# it has a handler would die of it, and take the others with it.
export ROSEATE_STOP_FILE=$job_folder/stop-${SLURM_RESTART_COUNT:-0}
export ROSEATE_REQUEUE_MARKER=$job_folder/requeue ROSEATE_VERDICT=$job_folder/verdict
rm -f "$ROSEATE_STOP_FILE"
stop_requested=''
request_stop() {
  say "stop request, saving"
  stop_requested=1
  touch "$ROSEATE_STOP_FILE"
  [[ $(job_state) == RUNNING ]] || ! nodes_are_well || note moved "queued again from outside"
}
# USR1 comes 180 s before the time limit or by `scancel --batch --signal=USR1`, TERM by preemption
# and where the job is ended or queued again from outside.
trap request_stop USR1 TERM

# All mistakes in seconds and once, before the tasks start.
take_config "$@"
# Not SLURM_NTASKS, which stays what it was where a queued job is given fewer nodes.
nodes=$SLURM_JOB_NUM_NODES
tasks_per_node=${SLURM_NTASKS_PER_NODE:-$((${SLURM_NTASKS:-nodes} / nodes))}
WORLD_SIZE=$((nodes * tasks_per_node))
(run_here "$ROSEATE_PYTHON" -m pipeline config check "${config_arguments[@]}" \
  --world-size "$WORLD_SIZE") || exit $?

MASTER_ADDR=$(node_address "$(first_node)")
export WORLD_SIZE MASTER_ADDR MASTER_PORT

# RANK and LOCAL_RANK, and the exit code where it tells the cause: of two ranks srun reports the one
# that it had to kill, not the one that said why. bash outlives the signals that are meant for Python.
# Where SLURM shows each task one GPU alone, that GPU is number 0 of the task.
# shellcheck disable=SC2016
task='
  trap : USR1 TERM
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
  [[ -n ${CUDA_VISIBLE_DEVICES-} && $CUDA_VISIBLE_DEVICES != *,* ]] && LOCAL_RANK=0
  code=0
  "$@" || code=$?
  case $code in 2 | 3 | 4) echo $code >"$ROSEATE_VERDICT" ;; esac
  exit $code'

arguments=("$@")
while :; do
  wait_for_nodes
  begin_attempt
  # Not the last one's port, which a dying process may still hold.
  MASTER_PORT=$((20000 + (SLURM_JOB_ID + 101 * attempt_number) % 10000))
  rm -f "$ROSEATE_REQUEUE_MARKER" "$ROSEATE_VERDICT"
  if [[ -s $ROSEATE_PROGRESS_FILE ]]; then
    # This job has a checkpoint of its own to go on from.
    for i in "${!arguments[@]}"; do
      [[ ${arguments[i]} != --fresh ]] || unset "arguments[i]"
    done
  fi
  say "attempt $attempt_number from step $attempt_step: $WORLD_SIZE tasks, first at $MASTER_ADDR:$MASTER_PORT"
  run_step --nodes="$nodes" --ntasks="$WORLD_SIZE" --ntasks-per-node="$tasks_per_node" \
    --kill-on-bad-exit=1 --wait=600 -- \
    bash -c "$task" task "$ROSEATE_PYTHON" -m pipeline train "${arguments[@]}" &
  code=0
  wait_through_signals $! || code=$?
  [[ ! -s $ROSEATE_VERDICT ]] || code=$(<"$ROSEATE_VERDICT")
  end_attempt "$code"
  say "training ended with exit code $code at step $(newest_step)"

  case $code in
    0)
      [[ -e $ROSEATE_REQUEUE_MARKER ]] || exit 0
      rm -f "$ROSEATE_REQUEUE_MARKER" "$ROSEATE_STOP_FILE"
      requeue_or_exit "stopped early"
      ;;
    2 | 3 | 4) exit "$code" ;; # configuration, data budget, or it cannot go on by itself
  esac
  # A crash: the same nodes at once, unless they are the reason or the time is over.
  if [[ -n $stop_requested || $(job_state) != RUNNING ]]; then
    requeue_or_exit "crashed while it was to stop"
  elif ! nodes_are_well; then
    requeue_or_exit "a node is down or drained"
  fi
  say "starting the tasks again on the same nodes"
done
