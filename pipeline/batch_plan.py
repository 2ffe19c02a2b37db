"""How a global batch is divided into ranks, micro-batches and accumulation steps: exact, or refused."""

from dataclasses import dataclass

from data_prep.errors import Problem


@dataclass(frozen=True)
class BatchPlan:
    """global_size = micro_size * world_size * accumulation_steps, all in samples."""

    global_size: int
    micro_size: int
    world_size: int

    @property
    def accumulation_steps(self) -> int:
        return self.global_size // (self.micro_size * self.world_size)

    def part(self, rank: int, micro_step: int | None = None) -> slice:
        """Which samples of the arranged global batch `rank` computes, in a micro-step or in all.

        A rank's samples lie together, since neighbours of the arrangement share shards.
        """
        first = rank * self.micro_size * self.accumulation_steps
        if micro_step is None:
            return slice(first, first + self.micro_size * self.accumulation_steps)
        first += micro_step * self.micro_size
        return slice(first, first + self.micro_size)


def check_batch(global_size: int, micro_size: int, world_size: int) -> list[Problem]:
    """The problem with this division, or none."""
    unit = micro_size * world_size
    if global_size % unit == 0:
        return []
    below, above = global_size // unit * unit, (global_size // unit + 1) * unit
    nearest = f"{below} or {above}" if below else f"{above}"
    return [
        Problem(
            "batch.global_size",
            global_size,
            f"a multiple of batch.micro_size={micro_size} x world_size={world_size} ({unit})",
            f"set batch.global_size={nearest}, or another batch.micro_size or number of processes",
        )
    ]
