# shellcheck shell=bash
# The only cluster-specific part of the batch scripts: edit this file, or export the same names
# before sbatch. Sourced by the batch shell on the first node; srun hands the result to every task.
#
# In:  ROSEATE_HOME, the checkout (set by the batch script).

# The container of all tasks; empty: none. A .sif file, or a docker:// or oras:// address where
# apptainer is on PATH, runs in `apptainer exec`; all else is the image of pyxis
# (srun --container-image). The checkout, the folders below and the one you submit from are mounted;
# name those of data, towers and runs elsewhere, as /path or /path:/inside, separated by commas.
export ROSEATE_CONTAINER=${ROSEATE_CONTAINER:-}
export ROSEATE_CONTAINER_MOUNTS=${ROSEATE_CONTAINER_MOUNTS:-}

# The interpreter: of the container, where there is one. Where the environment comes from modules or
# conda, activate it here instead and set ROSEATE_PYTHON=$(command -v python).
if [[ -n $ROSEATE_CONTAINER ]]; then
  export ROSEATE_PYTHON=${ROSEATE_PYTHON:-python3}
else
  export ROSEATE_PYTHON=${ROSEATE_PYTHON:-$ROSEATE_HOME/.venv/bin/python}
fi

# A folder that every node sees (job state: stop file, Ray token, Ray logs).
export ROSEATE_JOBS=${ROSEATE_JOBS:-$SLURM_SUBMIT_DIR/runs/slurm}

# A folder on each node's own disk; keep it short, Ray puts sockets below it (limit: 107 characters).
export ROSEATE_LOCAL=${ROSEATE_LOCAL:-/tmp}

# The network interface between the nodes, for instance ib0. Empty: the libraries choose.
export ROSEATE_INTERFACE=${ROSEATE_INTERFACE:-}
if [[ -n $ROSEATE_INTERFACE ]]; then
  export NCCL_SOCKET_IFNAME=$ROSEATE_INTERFACE GLOO_SOCKET_IFNAME=$ROSEATE_INTERFACE
fi

# Caches. Compiled kernels belong on the node's own disk; downloads where all nodes see them, which
# the home folder mostly is.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$ROSEATE_LOCAL/triton-$UID}
# export HF_HOME=/shared/huggingface
# export HF_HUB_OFFLINE=1          # compute nodes without a way to the internet

# Without a GPU DeepSpeed has to be told so.
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
  export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export RAY_USAGE_STATS_ENABLED=0
export PYTHONUNBUFFERED=1
