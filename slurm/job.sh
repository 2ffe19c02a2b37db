# shellcheck shell=bash
# What the batch scripts share. Nothing here depends on the cluster; see env.sh for that.

MAX_RESTARTS=20
NODE_PATIENCE_SECONDS=900

say() { printf '%s %s: %s\n' "$(date +%T)" "${SLURM_JOB_NAME:-job}" "$*"; }

fail() {
  say "$*" >&2
  exit 2
}

# Environment, job folder and thread counts; to be called first.
start_job() {
  # srun no longer takes the CPUs of a task from SLURM_CPUS_PER_TASK by itself.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  prepare_shell
  job_folder=$ROSEATE_JOBS/$SLURM_JOB_ID
  mkdir -p "$job_folder"
  say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, nodes $SLURM_JOB_NODELIST"
}

# What it takes to run our Python, in a job or where jobs are submitted.
prepare_shell() {
  # So that `python -m pipeline` and Ray's workers find the code from any working folder.
  export PYTHONPATH=$ROSEATE_HOME${PYTHONPATH:+:$PYTHONPATH}
  # shellcheck source=slurm/env.sh
  source "$ROSEATE_HOME/slurm/env.sh"
  [[ -n $ROSEATE_CONTAINER || -x $ROSEATE_PYTHON ]] ||
    fail "no interpreter at ROSEATE_PYTHON=$ROSEATE_PYTHON: run \`make install\` or edit slurm/env.sh"
  mkdir -p "$ROSEATE_JOBS"
  prepare_container
}

# ROSEATE_CONTAINER as options of srun (pyxis) or as a command in front of ours (apptainer).
# Sets srun_container and command_container, both empty where there is no container.
prepare_container() {
  srun_container=() command_container=()
  [[ -n $ROSEATE_CONTAINER ]] || return 0
  local runtime mounts=("$ROSEATE_HOME" "$ROSEATE_JOBS" "$PWD" "$ROSEATE_LOCAL") more=()
  IFS=, read -r -a more <<<"$ROSEATE_CONTAINER_MOUNTS"
  mapfile -t mounts < <(printf '%s\n' "${mounts[@]}" "${more[@]}" | awk 'NF && !seen[$0]++')
  runtime=$(command -v apptainer || command -v singularity || true)
  if [[ $ROSEATE_CONTAINER == *.sif ]] ||
    [[ -n $runtime && $ROSEATE_CONTAINER =~ ^(docker|oras|library):// ]]; then
    [[ -n $runtime ]] ||
      fail "ROSEATE_CONTAINER=$ROSEATE_CONTAINER wants apptainer, which is not on PATH:" \
        "load its module in slurm/env.sh"
    command_container=("$runtime" exec "--pwd=$PWD")
    # env.sh sets this where it finds no NVIDIA GPU.
    [[ ${DS_ACCELERATOR:-} == cpu ]] || command_container+=(--nv)
    command_container+=("${mounts[@]/#/--bind=}" "$ROSEATE_CONTAINER")
  else
    # Not through a pipe into `grep -q`, whose early end would be srun's failure.
    [[ $(srun --help) == *--container-image* ]] ||
      fail "ROSEATE_CONTAINER=$ROSEATE_CONTAINER wants pyxis, but srun knows no --container-image:" \
        "name a .sif file for apptainer"
    local i
    for i in "${!mounts[@]}"; do
      [[ ${mounts[i]} == *:* ]] || mounts[i]=${mounts[i]}:${mounts[i]}
    done
    srun_container=(
      "--container-image=$ROSEATE_CONTAINER" "--container-workdir=$PWD"
      "--container-mounts=$(IFS=,; printf '%s' "${mounts[*]}")"
    )
  fi
}

# run_step SRUN_OPTION... -- COMMAND...: a job step, in the container where one is named. It becomes
# srun, so that a signal to its process is one to srun: call it with `&` or in parentheses.
run_step() {
  local options=()
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  exec srun "${options[@]}" "${srun_container[@]}" "${command_container[@]}" "$@"
}

# One process on this node, beside whatever runs: a check, a driver. To be called like run_step.
run_here() { run_step --nodes=1 --ntasks=1 --nodelist="$(first_node)" --overlap -- "$@"; }

first_node() { scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p; }

# Address of a node as SLURM knows it: its name, except where names do not resolve.
node_address() {
  local address
  address=$(scontrol show node "$1" -o | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
  [[ -n $address ]] || fail "SLURM gives no address for node $1"
  printf '%s\n' "$address"
}

# Whether SLURM knows of nothing that ails a node of this job.
nodes_are_well() {
  ! scontrol show node "$SLURM_JOB_NODELIST" -o | grep -qE ' State=[^ ]*(DOWN|FAIL|DRAIN|NOT_RESP)'
}

# Whether every node runs what it is given.
nodes_answer() {
  timeout --kill-after=10 60 srun --overlap --nodes="$SLURM_JOB_NUM_NODES" \
    --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 true 2>/dev/null
}

# Return when all nodes are there; otherwise leave them and queue the job again. SLURM needs minutes
# to notice that a node is gone (SlurmdTimeout) and then queues the job again by itself; whoever asks
# for it before gets the same node again.
wait_for_nodes() {
  local until=$((SECONDS + NODE_PATIENCE_SECONDS)) told=''
  until nodes_answer; do
    [[ $(job_state) == RUNNING ]] || requeue_or_exit "a node does not answer"
    nodes_are_well || requeue_or_exit "a node is down or drained"
    ((SECONDS < until)) || requeue_or_exit "a node did not answer for $NODE_PATIENCE_SECONDS s"
    [[ -n $told ]] || say "a node does not answer: waiting for it, or for SLURM to notice"
    told=1
    sleep 5
  done
}

# take_config CONFIG [ARGUMENT...]: sets config_arguments to CONFIG and the overrides among the rest,
# without options such as --fresh, which concern one command alone.
take_config() {
  local argument
  config_arguments=("$1")
  for argument in "${@:2}"; do
    [[ $argument == -* || $argument != *=* ]] || config_arguments+=("$argument")
  done
}

# list_sources COMMAND...: names of ingest.sources, one a line, as the command, a `config show`, has them.
list_sources() {
  local shown
  shown=$("$@") || return
  awk '/^[^ ]/ { ingest = $1 == "ingest:" } /^  [^ ]/ { sources = $1 == "sources:" }
    ingest && sources && /^    [^ ]/ { sub(":$", "", $1); print $1 }' <<<"$shown"
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

# run_over_shards DONE COMMAND ARGUMENT...: one of our commands on all tasks, which divide shards among them;
# ends the job. After a stop request the shards that DONE stay, and the job is queued again.
run_over_shards() {
  local done_shards=$1 command=$2 tasks stop_requested='' code=0
  run_step --kill-on-bad-exit=1 -- "$ROSEATE_PYTHON" -m pipeline "${@:2}" &
  tasks=$!
  # shellcheck disable=SC2317  # called by the trap
  request_stop() {
    say "stop request: the shards that $done_shards stay"
    stop_requested=1
    kill "$tasks" 2>/dev/null || true
  }
  trap request_stop USR1 TERM
  wait_through_signals "$tasks" || code=$?
  say "$command ended with exit code $code"
  if [[ -n $stop_requested ]] && ((code != 0)); then
    requeue_or_exit "stopped early"
  fi
  exit "$code"
}

job_state() { scontrol show job "$SLURM_JOB_ID" -o | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p'; }

# requeue_or_exit WHY: queue this job again, to go on where it stopped. A job that somebody cancelled
# stays cancelled. Exit code 75 (temporary failure) where it cannot, so that `afterok` jobs do not
# start on half a run.
requeue_or_exit() {
  local state
  state=$(job_state)
  if [[ $state != RUNNING ]]; then
    say "$1; not queued again from here, the job is $state"
  elif ((${SLURM_RESTART_COUNT:-0} >= MAX_RESTARTS)); then
    say "$1; not queued again after $MAX_RESTARTS restarts: submit it once more to go on"
  elif scontrol requeue "$SLURM_JOB_ID"; then
    say "$1; queued again, restart $((${SLURM_RESTART_COUNT:-0} + 1)) of $MAX_RESTARTS"
    exit 0
  fi
  exit 75
}
