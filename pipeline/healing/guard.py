"""A step whose loss or gradient is not finite is skipped, by all ranks, with nothing changed.

DeepSpeed can already agree on that: with fp16 a gradient that overflows anywhere makes every rank drop the
step. Here the same check is switched on in every precision, and a loss that is not finite is made to poison
its gradient, so that one check, which DeepSpeed makes anyway, sees both. Nothing is sent that was not sent
before: the poison travels in the reduction of the gradients.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def poison(loss: Tensor) -> Tensor:
    """The loss itself; where it is not finite, NaN, and so is every gradient that goes back from it.

    A loss of inf or NaN may have a finite gradient, or one of zero, and would then pass unseen. A finite
    loss and its gradient keep every bit. The host does not wait for the device.

    Args:
        loss: a scalar, to be given to ``engine.backward``.
    """
    factor = torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
    return loss * factor.to(loss.dtype)


def watch_gradients(engine) -> None:
    """Have the engine look for gradients that are not finite before each update; once, after start.

    ZeRO-3 always looks at the norm, ZeRO-1 and 2 only where told to, and then at every gradient before:
    that is left out, since the norm shows as much. Without ZeRO DeepSpeed never looks, and clipping by a
    NaN would spread it over all weights; the optimizer's own step then does it.

    Args:
        engine: of DeepSpeed, in fp32 or bf16 with ZeRO 1 to 3, or in fp32 without ZeRO.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "check_grad_overflow"):
        optimizer.check_grad_overflow = True
        if optimizer.compute_grad_norm and not optimizer.cpu_offload:
            optimizer.check_overflow = lambda *_, **__: None
    elif not hasattr(optimizer, "overflow"):
        _watch_plain(optimizer)


def was_skipped(engine) -> bool:
    """Whether the optimizer step that ``engine.step()`` has just ended changed nothing; alike on all ranks.

    To be asked at the end of an optimizer step, not between its micro-steps. ``engine.global_steps`` counts
    skipped steps too, ``engine.skipped_steps`` them alone; the optimizer's own counters stand still.
    """
    return not engine.was_step_applied()


def skip_reason(engine, *, loss_was_finite: bool) -> str | None:
    """Why the step was skipped: None where it was not, "skip", or "backoff".

    In fp16 the loss scale is raised until gradients overflow: a skipped step with finite losses is then
    how the scale finds its level and no fault.

    Args:
        engine: after the optimizer step.
        loss_was_finite: of every micro-batch on every rank.
    """
    if not was_skipped(engine):
        return None
    return "backoff" if loss_was_finite and engine.fp16_enabled() else "skip"


def _watch_plain(optimizer: torch.optim.Optimizer) -> None:
    """Make the step of a plain optimizer do nothing, and say so in `overflow`, as DeepSpeed's do."""
    take_step = optimizer.step

    def step(*arguments, **options):
        gradients = [
            p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        # A norm is one pass over each; looking at every element takes three times as long.
        bad = (~torch.isfinite(torch.nn.utils.get_total_norm(gradients))).to(torch.uint8)
        # Divided experts have gradients of their own on each rank.
        dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        optimizer.overflow = bool(bad)
        if not optimizer.overflow:
            take_step(*arguments, **options)

    optimizer.step, optimizer.overflow = step, False
