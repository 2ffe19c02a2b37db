"""Processes that divide shards among them and share nothing else."""

import os


def find_share() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this node: of torchrun or slurm/, of srun alone, or 0, 1, 0."""
    environment = os.environ
    if "RANK" not in environment and "SLURM_STEP_NUM_TASKS" in environment:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    defaults = ("0", "1", "0")
    return tuple(int(environment.get(n, d)) for n, d in zip(names, defaults, strict=True))
