# shellcheck shell=bash
# What the batch scripts share. Nothing here depends on the cluster; see env.sh for that.

MAX_RESTARTS=20

say() { printf '%s %s: %s\n' "$(date +%T)" "${SLURM_JOB_NAME:-job}" "$*"; }

fail() {
  say "$*" >&2
  exit 2
}

# Environment, job folder and thread counts; to be called first.
start_job() {
  # srun no longer takes the CPUs of a task from SLURM_CPUS_PER_TASK by itself.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  # So that `python -m pipeline` and Ray's workers find the code from any working folder.
  export PYTHONPATH=$ROSEATE_HOME${PYTHONPATH:+:$PYTHONPATH}
  # shellcheck source=slurm/env.sh
  source "$ROSEATE_HOME/slurm/env.sh"
  [[ -x $ROSEATE_PYTHON ]] ||
    fail "no interpreter at ROSEATE_PYTHON=$ROSEATE_PYTHON: run \`make install\` or edit slurm/env.sh"
  job_folder=$ROSEATE_JOBS/$SLURM_JOB_ID
  mkdir -p "$job_folder"
  say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, nodes $SLURM_JOB_NODELIST"
}

# Address of a node as SLURM knows it: its name, except where names do not resolve.
node_address() {
  local address
  address=$(scontrol show node "$1" -o | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
  [[ -n $address ]] || fail "SLURM gives no address for node $1"
  printf '%s\n' "$address"
}

# Wait for a child through any number of trapped signals, each of which ends bash's `wait`.
wait_through_signals() {
  local code=0
  while :; do
    wait "$1" && code=0 || code=$?
    kill -0 "$1" 2>/dev/null || break
  done
  return "$code"
}

# Queue this job again, to go on where it stopped. A job that somebody cancelled stays cancelled.
# Exit code 75 (temporary failure) where it cannot, so that `afterok` jobs do not start on half a run.
requeue_or_exit() {
  local state
  state=$(scontrol show job "$SLURM_JOB_ID" -o | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p')
  if [[ $state != RUNNING ]]; then
    say "stopped early; not queued again, the job is $state"
  elif ((${SLURM_RESTART_COUNT:-0} >= MAX_RESTARTS)); then
    say "stopped early; not queued again after $MAX_RESTARTS restarts: submit it once more to go on"
  elif scontrol requeue "$SLURM_JOB_ID"; then
    say "stopped early; queued again, restart $((${SLURM_RESTART_COUNT:-0} + 1)) of $MAX_RESTARTS"
    exit 0
  fi
  exit 75
}
