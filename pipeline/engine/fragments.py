"""Which elements of which logical parameter this rank keeps, and where: one view of every ZeRO stage.

A logical parameter is one of the undivided model: its name, its shape, its elements in one row. DeepSpeed
keeps the fp32 masters and the optimizer's moments of a rank in flat tensors whose layout depends on the
stage, the number of ranks and the division of the experts. A `Fragment` says which run of a logical
parameter stands where in a flat tensor, so that nothing else need know any of these.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Elements that share a scale where moments have 8 bits: what bitsandbytes' update is made for.
BLOCK = 256


@dataclass(frozen=True)
class Fragment:
    """Elements ``start`` to ``start + numel`` of a logical parameter, at ``offset`` of a flat tensor.

    Attributes:
        name: of the logical parameter.
        total: its number of elements.
        start: first element, in the order of the undivided, contiguous parameter.
        numel: how many.
        flat: number of this rank's flat tensor.
        offset: place in it.
    """

    name: str
    total: int
    start: int
    numel: int
    flat: int
    offset: int

    def cut(self, low: int, high: int) -> "Fragment | None":
        """The part within elements ``low`` to ``high`` of the logical parameter, or None."""
        start, stop = max(low, self.start), min(high, self.start + self.numel)
        if start >= stop:
            return None
        offset = self.offset + start - self.start
        return Fragment(self.name, self.total, start, stop - start, self.flat, offset)


@dataclass(frozen=True)
class EngineView:
    """An engine as fragments of logical parameters.

    Attributes:
        flats: fp32 masters of this rank, one-dimensional.
        keys: the tensors under which the optimizer keeps the state of each of them.
        fragments: what they hold; padding is in none. Every element of every logical parameter is in
            exactly one fragment over all ranks, except under ZeRO-0, where every rank has all.
        shapes: of all logical parameters.
        inner: the optimizer whose ``state`` is by flat tensor.
        widths: bits of the moments of each flat tensor, as its parameter group asks for.
    """

    flats: list[Tensor]
    keys: list[Tensor]
    fragments: list[Fragment]
    shapes: dict[str, tuple[int, ...]]
    inner: torch.optim.Optimizer
    widths: list[int]

    def owned(self, rank: int, world_size: int, *, stage: int) -> list[Fragment]:
        """The fragments that this rank is to write: under ZeRO-0 an even share of what all have."""
        if stage > 0:
            return self.fragments
        owned = []
        for fragment in self.fragments:
            # In whole blocks, so that none of 8-bit states is cut.
            blocks = math.ceil(fragment.total / BLOCK)
            low, high = (BLOCK * (blocks * r // world_size) for r in (rank, rank + 1))
            part = fragment.cut(low, fragment.total if rank + 1 == world_size else high)
            owned += [part] if part else []
        return owned


def view_engine(engine, stage: int) -> EngineView:
    """Look at an engine of `pipeline.engine.start.start_engine`.

    Args:
        engine: DeepSpeed's.
        stage: of ZeRO.
    """
    names = _local_names(engine.module)
    zero = engine.optimizer
    if stage == 0:
        inner, placed = zero, _whole_parameters(zero)
        keys = [parameter for group in zero.param_groups for parameter in group["params"]]
        groups = [group for group in zero.param_groups for _ in group["params"]]
    elif stage == 3:
        inner, placed, keys = zero.optimizer, _stage_3(zero), zero.fp32_partitioned_groups_flat
        groups = [inner.param_groups[zero.sub_group_to_group_id[i]] for i in range(len(keys))]
    else:
        inner, placed = zero.optimizer, _stage_1_and_2(zero)
        keys, groups = zero.single_partition_of_fp32_groups, inner.param_groups
    fragments = []
    for parameter, flat, low, high, offset in placed:
        place = names[parameter]
        total = math.prod(place.shape)
        for local, start, numel in place.runs(low, high):
            fragments.append(Fragment(place.name, total, start, numel, flat, offset + local - low))
    shapes = {place.name: place.shape for place in names.values()}
    flats = [key.detach().view(-1) for key in keys]
    widths = [group.get("optim_bits", 32) for group in groups]
    return EngineView(flats, list(keys), fragments, shapes, inner, widths)


def publish_masters(engine, stage: int) -> None:
    """Bring the model's weights on all ranks up to the masters, after these were written."""
    zero = engine.optimizer
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        zero.checkpoint_event_prologue()
        for masters, weights in zip(
            zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True
        ):
            weights.data.copy_(masters.data)
        # Small parameters stand undivided on every rank, between steps too.
        zero.checkpoint_event_epilogue()


@dataclass(frozen=True)
class _Place:
    """Where the elements of a local parameter stand in its logical one.

    The local parameter is rows of ``row`` elements; row i is at ``first + i * stride``.
    """

    name: str
    shape: tuple[int, ...]
    first: int
    row: int
    stride: int

    def runs(self, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """(local start, logical start, numel) of the runs of local elements ``low`` to ``high``."""
        if self.row == self.stride:
            yield low, self.first + low, high - low
            return
        while low < high:
            row, within = divmod(low, self.row)
            numel = min(self.row - within, high - low)
            yield low, self.first + row * self.stride + within, numel
            low += numel


def _local_names(module: nn.Module) -> dict[nn.Parameter, _Place]:
    """Local parameter to its place in the logical one, for all that are trained.

    AutoEP keeps gate (w1), down (w2) and up (w3) apart, [E / ranks, F, H] or [E / ranks, H, F], where
    the undivided model has gate_up_proj [E, 2F, H] and down_proj [E, H, F].
    """
    places = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        numel = math.prod(shape)
        if match := re.fullmatch(r"(.*\.routed)\.router\.gate\.weight", name):
            name = f"{match[1]}.gate.weight"
        elif match := re.fullmatch(r"(.*\.routed\.experts)\.w([123])", name):
            ranks, rank = _expert_division(parameter)
            local, rows, columns = shape
            row, experts = rows * columns, local * ranks
            if match[2] == "2":
                place = (
                    f"{match[1]}.down_proj",
                    (experts, rows, columns),
                    row * local * rank,
                    row,
                    row,
                )
            else:
                first = 2 * row * local * rank + (row if match[2] == "3" else 0)
                logical = (experts, 2 * rows, columns)
                place = f"{match[1]}.gate_up_proj", logical, first, row, 2 * row
            places[parameter] = _Place(*place)
            continue
        places[parameter] = _Place(name, shape, 0, numel, numel)
    return places


def _expert_division(parameter: nn.Parameter) -> tuple[int, int]:
    """(ranks that the experts are divided over, this one among them)."""
    from deepspeed.utils import groups

    group = groups._get_expert_parallel_group(parameter.group_name)
    return dist.get_world_size(group), dist.get_rank(group)


# Each yields (local parameter, number of the flat tensor, first and last local element, place in it).


def _whole_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for flat, parameter in enumerate(parameters):
        yield parameter, flat, 0, parameter.numel(), 0


def _stage_1_and_2(zero) -> Iterator[tuple]:
    for flat, parameters in enumerate(zero.round_robin_bit16_groups):
        size = zero.partition_size[flat]
        first = size * dist.get_rank(zero.real_dp_process_group[flat])
        for parameter, begin in zip(parameters, zero.round_robin_bit16_offsets[flat], strict=True):
            low = max(first, begin)
            high = min(first + size, begin + parameter.numel())
            if low < high:
                yield parameter, flat, low - begin, high - begin, low - first


def _stage_3(zero) -> Iterator[tuple]:
    for flat, parameters in enumerate(zero.fp16_groups):
        offset = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            low = size * zero._get_param_partition_rank(parameter)
            high = min(low + size, parameter.ds_numel)
            if low < high:
                yield parameter, flat, low, high, offset
            offset += size
