"""What all ranks must know of a step: what its global batch holds, and what came of it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep.errors import DataBudgetError
from pipeline.data.ahead import DataFailure
from pipeline.data.batch import Batch
from pipeline.distributed import DistInfo, sum_over_ranks
from pipeline.objectives import LossScale


@dataclass(frozen=True)
class Content:
    """Of a global batch: target tokens, tokens that are no padding, images, samples replaced."""

    targets: float
    tokens: float
    images: float
    replaced: int


@dataclass(frozen=True)
class Outcome:
    """Of a step.

    Attributes:
        losses: means over micro-steps and ranks; the loss per target token first where there is one, then
            that of every source in the batch.
        bad_losses: micro-batches of all ranks whose loss was not finite.
        asked_to_stop: whether a rank was.
    """

    losses: dict[str, float]
    bad_losses: int
    asked_to_stop: bool

    @property
    def loss(self) -> float:
        return next(iter(self.losses.values()))


def agree_on_data(batches: list[Batch] | DataFailure, info: DistInfo) -> Content:
    """What the global batch holds; every rank must call it.

    Raises:
        DataBudgetError, OSError: on every rank, when any of them could not make its part.
    """
    failed = isinstance(batches, DataFailure)
    mine = [] if failed else batches
    counts = [
        sum(batch.num_target_tokens for batch in mine),
        sum(batch.num_tokens for batch in mine),
        sum(batch.num_images for batch in mine),
        sum(r.counted for batch in mine for r in batch.replaced),
    ]
    targets, tokens, images, replaced, failures = sum_over_ranks([*counts, failed], info)
    if failed:
        raise batches
    if failures:
        raise DataBudgetError("another rank could not make its part of the batch; it tells why")
    return Content(targets, tokens, images, int(replaced))


def agree_on_outcome(
    reports: list[dict[str, Tensor]],
    finite: list[bool],
    *,
    asked_to_stop: bool,
    scale: LossScale,
    sources: Iterable[str],
    info: DistInfo,
) -> Outcome:
    """What came of a step, by one reduction; every rank must call it.

    Args:
        reports: of the objective, for each micro-batch of this rank.
        finite: whether its loss was.
        asked_to_stop: whether this rank was.
        scale: of the step's losses.
        sources: names in the order of the reports' `source_losses`.
        info: the ranks.
    """
    sizes = {name: value.numel() for name, value in reports[0].items()}
    rows = [torch.cat([r[name].float().flatten() for name in sizes]) for r in reports]
    mine = [*torch.stack(rows).sum(0).tolist(), finite.count(False), asked_to_stop]
    *values, bad_losses, stops = sum_over_ranks(mine, info)
    totals, at = {}, iter(values)
    for name, size in sizes.items():
        totals[name] = [next(at) for _ in range(size)]
    losses = {}
    if "loss_sum" in totals:
        losses["loss"] = totals.pop("loss_sum")[0] / scale.target_tokens
    if "source_losses" in totals:
        flat = totals.pop("source_losses")
        for name, loss, tokens in zip(sources, flat[::2], flat[1::2], strict=True):
            if tokens:
                losses[f"loss/{name}"] = loss / tokens
    losses |= {name: total / scale.splits for name, (total,) in totals.items()}
    return Outcome(losses, int(bad_losses), stops > 0)
