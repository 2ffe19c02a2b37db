"""Runs with a fault in them, on this process or on ranks: what a bad sample or a dying node does."""

from collections.abc import Callable

import torch

from pipeline.config import RunConfig
from pipeline.objectives import FlamingoObjective
from pipeline.train import train

# (step, rank, micro-step, loss, report, positions of the batch) -> (loss, report)
Fault = Callable[..., tuple[torch.Tensor, dict]]


class KilledError(BaseException):
    """In place of a SIGKILL where a whole process would take long: nothing handles it, nothing is saved."""


def train_with(config: RunConfig, fault: Fault | None = None) -> dict:
    """`train`, with a fault between forward and backward of every micro-batch; the summary."""
    healthy = FlamingoObjective.loss
    count = {"micro": 0}

    def loss(self, module, batch, scale):
        accumulation = module.gradient_accumulation_steps()
        step, micro = divmod(count["micro"], accumulation)
        count["micro"] += 1
        value, report = healthy(self, module, batch, scale)
        rank = torch.distributed.get_rank()
        return fault(step, rank, micro, value, report, batch.positions)

    if fault is None:
        return train(config)
    FlamingoObjective.loss = loss
    try:
        return train(config)
    finally:
        FlamingoObjective.loss = healthy
