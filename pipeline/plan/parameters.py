"""The parameters of a model as DeepSpeed gets them: groups of sizes, in the order in which it joins them."""

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate

from model.flamingo import Flamingo
from pipeline.config import RunConfig
from pipeline.engine.deepspeed_config import is_expert_parallel
from pipeline.engine.optim import parameter_groups

# ZeRO-1 and 2 pad a joined group to a multiple of this times the ranks (nccl_start_alignment_factor).
ALIGNMENT = 2


@dataclass(frozen=True)
class ParameterGroup:
    """Trained parameters that one flat tensor of the optimizer holds.

    Attributes:
        name: as in `pipeline.engine.optim`; divided experts have a group of their own.
        sizes: elements of each parameter on one rank, before ZeRO divides them.
        bits: of the optimizer's moments, 8 or 32, if the optimizer has 8-bit ones at all.
        expert_ranks: ranks that the experts are divided over; 1 for what is not divided.
    """

    name: str
    sizes: tuple[int, ...]
    bits: int
    expert_ranks: int = 1

    def ranks(self, world_size: int) -> int:
        """Ranks that ZeRO divides the group over: those that have the same of it."""
        return world_size // self.expert_ranks

    def joined(self, world_size: int) -> int:
        """Elements of the joined group, padding included (ZeRO-1 and 2)."""
        unit = ALIGNMENT * self.ranks(world_size)
        return math.ceil(sum(self.sizes) / unit) * unit

    def share(self, stage: int, world_size: int) -> int:
        """Elements of one rank's part, padding included; all of them under ZeRO-0."""
        if stage == 0:
            return sum(self.sizes)
        if stage < 3:
            return self.joined(world_size) // self.ranks(world_size)
        return sum(math.ceil(size / self.ranks(world_size)) for size in self.sizes)

    def touched(self, rank: int, world_size: int) -> int:
        """Elements of all parameters that reach into a rank's part (ZeRO-1 and 2), each counted whole."""
        part, share = rank // self.expert_ranks, self.share(1, world_size)
        ends = list(accumulate(self.sizes))
        first = bisect_right(ends, part * share)
        last = min(bisect_right(ends, (part + 1) * share - 1), len(ends) - 1)
        if first >= len(ends):
            return share  # nothing but padding
        return ends[last] - (ends[first - 1] if first else 0)


@dataclass(frozen=True)
class Parameters:
    """What a run trains, and what it only reads.

    Attributes:
        groups: trained.
        frozen: elements of each frozen parameter.
    """

    groups: list[ParameterGroup]
    frozen: list[int] = field(default_factory=list)

    @property
    def trained_numel(self) -> int:
        """Elements on one rank before ZeRO divides them."""
        return sum(sum(group.sizes) for group in self.groups)

    def all_sizes(self) -> list[int]:
        """Of every parameter that a rank holds or gathers."""
        return [size for group in self.groups for size in group.sizes] + self.frozen

    def gathered_sizes(self, world_size: int) -> list[int]:
        """Of the parameters that ZeRO-3 divides; what one rank has to itself needs no second place."""
        groups = [group for group in self.groups if group.ranks(world_size) > 1]
        sizes = [size for group in groups for size in group.sizes]
        return sizes + (self.frozen if world_size > 1 else [])

    def largest(self) -> int:
        """Elements of the largest trained parameter."""
        return max((size for group in self.groups for size in group.sizes), default=0)

    def touched(self, world_size: int) -> int:
        """Elements of all parameters that reach into the part of the rank that has most of them."""
        return max(
            sum(group.touched(rank, world_size) for group in self.groups)
            for rank in range(world_size)
        )


def list_parameters(model: Flamingo, config: RunConfig, world_size: int) -> Parameters:
    """Sort the parameters of a model as `pipeline.engine.start` does.

    Args:
        model: on the meta device, with the stacked experts in place.
        config: of the run.
        world_size: ranks; fewer than engine.expert_parallel divide the experts among themselves.
    """
    divided = min(config.engine.expert_parallel, world_size) if is_expert_parallel(config) else 1
    routed = {
        parameter: name
        for module in (model.expert_modules.values() if divided > 1 else ())
        for name, parameter in module.experts.named_parameters()
    }
    groups = []
    for group in parameter_groups(model, config.optim.weight_decay, config.train.unfreeze):
        name, bits = group["name"], group["optim_bits"]
        plain = [p.numel() for p in group["params"] if p not in routed]
        if plain:
            groups.append(ParameterGroup(name, tuple(plain), bits))
        experts = []
        for parameter in group["params"]:
            if parameter in routed:
                # AutoEP keeps gate and up apart, which the model has in one matrix.
                parts = 2 if routed[parameter] == "gate_up_proj" else 1
                experts += [parameter.numel() // divided // parts] * parts
        if experts:
            groups.append(ParameterGroup(f"{name}, experts", tuple(experts), bits, divided))
    return Parameters(groups, [p.numel() for p in model.parameters() if not p.requires_grad])
