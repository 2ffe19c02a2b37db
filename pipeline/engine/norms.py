"""Norms of all gradients at once, where DeepSpeed's ZeRO takes one after another.

On a GPU a kernel for each of some hundred gradients, and a copy of each in 64 bits, is time in which the
host cannot begin anything else.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def join_norms(engine) -> None:
    """Have ZeRO's optimizer take the norms of a group together; once, after start.

    Args:
        engine: of DeepSpeed; without ZeRO nothing is changed.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "get_grad_norm_direct"):
        optimizer.get_grad_norm_direct = _joined(optimizer.get_grad_norm_direct)


def _joined(take_norm: Callable) -> Callable:
    """DeepSpeed's own method, given the norms of the gradients in place of these: the norm is the same."""

    def get_grad_norm_direct(
        gradients: list[Tensor], params: list[nn.Parameter], norm_type: float = 2
    ) -> Tensor:
        # What fills up the last rank's part is a tensor too.
        gradients = [g for g in gradients if not getattr(g, "_zero_padding", False)]
        if norm_type == 2 and gradients:
            gradients = [torch.stack(torch._foreach_norm(gradients, 2.0, torch.float64))]
        return take_norm(gradients, params, norm_type)

    return get_grad_norm_direct
