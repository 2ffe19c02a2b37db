"""Cross entropy of a large vocabulary without ever holding all logits.

Shape legend: X target tokens, H width, V vocabulary, J new tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LOGITS_PER_CHUNK = 2**25
Head = Callable[[Tensor, Tensor], Tensor]


class ChunkedCrossEntropy(torch.autograd.Function):
    """Computes loss and gradient chunk by chunk in the forward; see `chunked_cross_entropy`."""

    @staticmethod
    def forward(
        ctx, hidden_XH: Tensor, rows_JH: Tensor, targets_X: Tensor, head: Head, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """Return the sum, fp32 scalar, and the loss of each target, to be looked at only."""
        wants = any(ctx.needs_input_grad)
        losses_X = torch.zeros(
            len(hidden_XH), dtype=_at_least_fp32(hidden_XH), device=hidden_XH.device
        )
        total = losses_X.new_zeros(())
        grad_hidden = torch.zeros_like(hidden_XH) if wants else None
        grad_rows = torch.zeros_like(rows_JH) if wants else None
        for start in range(0, len(hidden_XH), chunk):
            part = slice(start, start + chunk)
            hidden = hidden_XH[part].detach().requires_grad_(wants)
            rows = rows_JH.detach().requires_grad_(wants)
            losses_X[part], found = _loss_and_gradients(hidden, rows, targets_X[part], head)
            total += losses_X[part].sum()
            if wants:
                grad_hidden[part] = found[0]
                if found[1] is not None:
                    grad_rows += found[1]
        if wants:
            ctx.save_for_backward(grad_hidden, grad_rows)
        ctx.mark_non_differentiable(losses_X)
        return total, losses_X

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple:
        """Scale the gradients that the forward has computed."""
        hidden, rows = ctx.saved_tensors
        return hidden * grad.to(hidden.dtype), rows * grad.to(rows.dtype), None, None, None


def chunked_cross_entropy(
    hidden_XH: Tensor,
    rows_JH: Tensor,
    targets_X: Tensor,
    head: Head,
    *,
    vocabulary: int,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of target tokens, and that of each.

    Holds the logits of one chunk at a time and multiplies with the head twice, not three times as
    recomputation would: the gradient of a sum is known up to a factor as soon as its chunk is.
    Beside the chunk it keeps one gradient of the size of the hidden states.

    Args:
        hidden_XH: hidden states that predict a target.
        rows_JH: what else the head needs a gradient for: output rows of the new tokens.
        targets_X: long.
        head: ``([x, H], rows)`` to logits ``[x, V]``; its own weights are frozen.
        vocabulary: V, to choose the chunk.
        logits_per_chunk: elements of the largest block of logits.

    Returns:
        (scalar in fp32, or fp64 for fp64 hidden states; 0 with a zero gradient for X = 0,
        ``[X]`` of the same kind, without a gradient).

    Source: the idea of arXiv:2410.10989 (Liger). `torch.nn.functional.linear_cross_entropy` does it
        for a head that is one matrix; here the head is whatever the language model says, and frozen.
    """
    chunk = max(1, logits_per_chunk // vocabulary)
    return ChunkedCrossEntropy.apply(hidden_XH, rows_JH, targets_X, head, chunk)


def _loss_and_gradients(
    hidden: Tensor, rows: Tensor, targets: Tensor, head: Head
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Losses of one chunk; gradients of hidden states and rows, if they want one.

    A function of its own, so that the blocks of one chunk are gone before the next is begun.
    """
    wants = hidden.requires_grad
    with torch.set_grad_enabled(wants):
        logits = head(hidden, rows)
    log_p = logits.detach().to(_at_least_fp32(hidden)).log_softmax(-1)
    targets = targets.unsqueeze(-1)
    log_p_target = log_p.gather(-1, targets)
    losses = -log_p_target.squeeze(-1)
    if not wants:
        return losses, ()
    # Softmax minus one-hot, written over the log probabilities: autograd would keep two more blocks
    # of this size, and memory never touched before costs time.
    grad = log_p.exp_().scatter_(-1, targets, log_p_target.exp() - 1).to(logits.dtype)
    return losses, torch.autograd.grad(logits, [hidden, rows], grad, allow_unused=True)


def _at_least_fp32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
