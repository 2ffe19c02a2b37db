#!/usr/bin/env bash
# URL tables to dataset folders, by a Ray cluster that lives as long as this job:
#   sbatch slurm/ingest.sh CONFIG [section.key=value ...]
#   sbatch --array=0-2 slurm/ingest.sh CONFIG ...          three sources, a job and a Ray cluster each
# Options of sbatch overrule this header. Committed shards stay: a killed job is simply submitted again.
#SBATCH --job-name=ingest
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
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
(($# > 0)) || fail "which run? sbatch slurm/ingest.sh CONFIG [section.key=value ...]"

only=()
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  take_config "$@"
  mapfile -t sources < <(
    list_sources run_here "$ROSEATE_PYTHON" -m pipeline config show "${config_arguments[@]}"
  )
  ((${#sources[@]} > 0)) || fail "no sources to divide among the array's jobs, see the mistakes above"
  ((SLURM_ARRAY_TASK_ID < ${#sources[@]})) ||
    fail "--array: job $SLURM_ARRAY_TASK_ID of the array has no source, there are ${#sources[@]}:" \
      "submit with --array=0-$((${#sources[@]} - 1))"
  only=(--only "${sources[SLURM_ARRAY_TASK_ID]}")
  say "source ${sources[SLURM_ARRAY_TASK_ID]}, number $SLURM_ARRAY_TASK_ID of ingest.sources"
fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(node_address "${nodes[0]}")
if [[ ! $address =~ ^[0-9.]+$ ]]; then
  # Ray wants a number, and a node often knows its own name as 127.0.1.1. We are on the first node.
  address=$(hostname -I | cut -d ' ' -f 1)
  if [[ -n $ROSEATE_INTERFACE ]]; then
    address=$(ip -4 -o addr show dev "$ROSEATE_INTERFACE" | sed -n 's/.* inet \([0-9.]*\).*/\1/p')
  fi
fi
port=$((30000 + SLURM_JOB_ID % 2000))
temporary=$ROSEATE_LOCAL/ray-$SLURM_JOB_ID

# Without a token every user of the node could run code in this cluster. Set explicitly, since Ray
# otherwise takes a token on the head only where the user's home happens to have one.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$job_folder/ray-token
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

head_step='' driver='' stop_requested=''
worker_steps=()

ray_node() { # ray_node NODE ARGUMENT...: one Ray node, which lives as long as its srun
  # Worker ports are left to the system, so that several SLURM nodes can live on one host. Tasks
  # write files and return a few numbers: the object store stays small.
  run_step --nodes=1 --ntasks=1 --nodelist="$1" --overlap -- \
    "$ROSEATE_PYTHON" -m ray.scripts.scripts start "${@:2}" --block --disable-usage-stats \
    --num-cpus="$SRUN_CPUS_PER_TASK" --object-store-memory=150000000 \
    --min-worker-port=0 --max-worker-port=0 >>"$job_folder/ray-$1.log" 2>&1
}

stop_ray() {
  local step
  trap '' USR1 TERM
  trap - EXIT
  # Workers first: one whose head is gone waits half a minute for it.
  for step in "${worker_steps[@]}" $head_step; do
    kill "$step" 2>/dev/null || true
    wait "$step" 2>/dev/null || true
  done
  rm -f "$RAY_AUTH_TOKEN_PATH"
  srun --overlap rm -rf "$temporary" || true
}
trap stop_ray EXIT

# shellcheck disable=SC2317  # called by the trap
request_stop() {
  say "stop request: what is committed stays"
  stop_requested=1
  if [[ -n $driver ]]; then kill "$driver" 2>/dev/null || true; fi
}
trap request_stop USR1 TERM

say "Ray head at $address:$port, ${#nodes[@]} nodes with $SRUN_CPUS_PER_TASK CPUs each"
ray_node "${nodes[0]}" --head --node-ip-address="$address" --port="$port" \
  --include-dashboard=false --temp-dir="$temporary" &
head_step=$!
for ((tries = 0; ; tries++)); do
  (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null && break
  kill -0 "$head_step" 2>/dev/null || fail "the Ray head ended, see $job_folder/ray-${nodes[0]}.log"
  ((tries < 120)) || fail "no Ray head after 120 s, see $job_folder/ray-${nodes[0]}.log"
  sleep 1
done
for node in "${nodes[@]:1}"; do
  ray_node "$node" --address="$address:$port" &
  worker_steps+=($!)
done

joined=0
(run_here "$ROSEATE_PYTHON" - "$address:$port" "${#nodes[@]}") <<'PYTHON' || joined=$?
import sys
import time

import ray

address, wanted = sys.argv[1], int(sys.argv[2])
ray.init(address=address, logging_level="ERROR", log_to_driver=False)
deadline = time.monotonic() + 180
while (alive := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{alive} of {wanted} Ray nodes after 180 s")
    time.sleep(0.5)
PYTHON
((joined == 0)) || fail "the Ray nodes did not all join, see $job_folder/ray-*.log"
say "all ${#nodes[@]} Ray nodes joined"

code=0
if [[ -z $stop_requested ]]; then
  run_here "$ROSEATE_PYTHON" -m pipeline ingest "$@" "${only[@]}" "ingest.ray.address=$address:$port" &
  driver=$!
  wait_through_signals "$driver" || code=$?
  say "ingest ended with exit code $code"
fi
stop_ray
if [[ -n $stop_requested ]] && { [[ -z $driver ]] || ((code != 0)); }; then
  requeue_or_exit "stopped early"
fi
exit "$code"
