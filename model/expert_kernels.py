"""Two ways to compute stacked SwiGLU experts: a loop over the experts, and grouped products.

The loop is as fast as a dense feed-forward on a CPU, where memory that was never touched before is
what costs time: it works in blocks of one expert that stay in the cache, keeps one tensor for
backward, and writes every gradient once. The grouped products do not wait for the device to know
the counts.
Both are gathers in both directions, without any atomic sum, and so repeat bit by bit.
Shape legend: X tokens, H width, F hidden width, E experts, K experts per token, N = X * K
assignments, R rows of a block.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.router import Routes

BLOCK_ROWS = 1024


def looped_experts(
    tokens_XH: Tensor, routes: Routes, gate_up_EGH: Tensor, down_EHF: Tensor
) -> Tensor:
    """Return ``[X, H]``: per token the sum of its experts' outputs by weight.

    Args:
        tokens_XH: in their own order.
        routes: which expert takes which token.
        gate_up_EGH: gate and up weights, G = 2 * F rows, gate first.
        down_EHF: down weights.
    """
    keep = torch.is_grad_enabled()
    return _LoopedExperts.apply(
        tokens_XH,
        routes.weights_XK,
        gate_up_EGH,
        down_EHF,
        routes.source_N,
        routes.counts_E,
        routes.place_XK,
        keep,
    )


class _LoopedExperts(torch.autograd.Function):
    """The weight goes onto the activation, before the down product: same sum, and the gradient of
    the weight needs no output of an expert."""

    @staticmethod
    def forward(
        ctx,
        tokens_XH: Tensor,
        weights_XK: Tensor,
        gate_up_EGH: Tensor,
        down_EHF: Tensor,
        source_N: Tensor,
        counts_E: Tensor,
        place_XK: Tensor,
        keep: bool,
    ) -> Tensor:
        counts = counts_E.tolist()
        weights_N1 = _by_place(weights_XK, place_XK)
        num_rows, double_hidden = len(source_N), gate_up_EGH.shape[1]
        hidden_NG = tokens_XH.new_empty(num_rows if keep else 0, double_hidden)
        outputs_NH = tokens_XH.new_empty(num_rows, tokens_XH.shape[1])
        for expert, rows, _ in _blocks(counts):
            picked_RH = tokens_XH.index_select(0, source_N[rows])
            hidden_RG = (
                hidden_NG[rows] if keep else picked_RH.new_empty(len(picked_RH), double_hidden)
            )
            torch.mm(picked_RH, gate_up_EGH[expert].t(), out=hidden_RG)
            gate_RF, up_RF = hidden_RG.chunk(2, dim=1)
            active_RF = F.silu(gate_RF).mul_(up_RF).mul_(weights_N1[rows])
            torch.mm(active_RF, down_EHF[expert].t(), out=outputs_NH[rows])
        outputs_NH[sum(counts) :] = 0
        ctx.counts = counts
        ctx.save_for_backward(
            tokens_XH, weights_N1, gate_up_EGH, down_EHF, source_N, place_XK, hidden_NG
        )
        return _sum_choices(outputs_NH, place_XK)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_XH: Tensor) -> tuple[Tensor | None, ...]:
        tokens_XH, weights_N1, gate_up_EGH, down_EHF, source_N, place_XK, hidden_NG = (
            ctx.saved_tensors
        )
        hidden_width = down_EHF.shape[2]
        grad_tokens_NH = tokens_XH.new_empty(len(source_N), tokens_XH.shape[1])
        grad_weights_N1 = torch.zeros_like(weights_N1)
        grad_gate_up_EGH, grad_down_EHF = torch.empty_like(gate_up_EGH), torch.empty_like(down_EHF)
        for expert, rows, begun in _blocks(ctx.counts):
            hidden_RG, weights_R1, source_R = hidden_NG[rows], weights_N1[rows], source_N[rows]
            gate_RF, up_RF = hidden_RG.chunk(2, dim=1)
            grad_RH = grad_XH.index_select(0, source_R)
            grad_active_RF = grad_RH @ down_EHF[expert]
            silu_RF = F.silu(gate_RF)
            active_RF = silu_RF * up_RF
            grad_weights_N1[rows] = (grad_active_RF * active_RF).sum(
                1, keepdim=True, dtype=weights_R1.dtype
            )
            grad_RH.mul_(weights_R1)
            grad_active_RF.mul_(weights_R1)
            grad_hidden_RG = torch.empty_like(hidden_RG)
            torch.mul(grad_active_RF, silu_RF, out=grad_hidden_RG[:, hidden_width:])
            grad_active_RF.mul_(up_RF)
            grad_hidden_RG[:, :hidden_width] = torch.ops.aten.silu_backward(grad_active_RF, gate_RF)
            picked_RH = tokens_XH.index_select(0, source_R)
            _add_product(grad_down_EHF[expert], grad_RH.t(), active_RF, begun)
            _add_product(grad_gate_up_EGH[expert], grad_hidden_RG.t(), picked_RH, begun)
            torch.mm(grad_hidden_RG, gate_up_EGH[expert], out=grad_tokens_NH[rows])
        grad_tokens_NH[sum(ctx.counts) :] = 0
        for expert, count in enumerate(ctx.counts):
            if count == 0:
                grad_gate_up_EGH[expert] = 0
                grad_down_EHF[expert] = 0
        grad_weights_XK = grad_weights_N1.flatten()[place_XK]
        grad_tokens_XH = _sum_choices(grad_tokens_NH, place_XK)
        return grad_tokens_XH, grad_weights_XK, grad_gate_up_EGH, grad_down_EHF, *[None] * 4


def _blocks(counts: list[int]) -> Iterator[tuple[int, slice, bool]]:
    """Yield expert, rows, and whether the expert has had rows before.

    The parts of an expert are even: each costs a pass over its weights and their gradients, however
    few rows it is for.
    """
    first = 0
    for expert, count in enumerate(counts):
        num_parts = math.ceil(count / BLOCK_ROWS)
        for part in range(num_parts):
            last = first + count * (part + 1) // num_parts - count * part // num_parts
            yield expert, slice(first, last), part > 0
            first = last


def _add_product(total: Tensor, left: Tensor, right: Tensor, begun: bool) -> None:
    """Write the product, or add it to what has begun."""
    torch.addmm(total, left, right, beta=float(begun), out=total)


def _by_place(values_XK: Tensor, place_XK: Tensor) -> Tensor:
    values_N1 = values_XK.new_empty(values_XK.numel(), 1)
    values_N1[place_XK.flatten(), 0] = values_XK.flatten()
    return values_N1


def _sum_choices(rows_NH: Tensor, place_XK: Tensor) -> Tensor:
    """Sum the K rows of each token."""
    return F.embedding_bag(place_XK, rows_NH, mode="sum")


def grouped_mm_takes(tokens_XH: Tensor, *weights: Tensor) -> bool:
    """grouped_mm wants float16, bfloat16 or float32 and rows of a multiple of 16 bytes."""
    if tokens_XH.dtype == torch.float64 or any(w.dtype != tokens_XH.dtype for w in weights):
        return False
    bytes_each = tokens_XH.element_size()
    return len(tokens_XH) > 0 and all(
        w.shape[-1] * bytes_each % 16 == 0 and w.shape[-2] * bytes_each % 16 == 0 for w in weights
    )


def grouped_experts(
    tokens_XH: Tensor, routes: Routes, gate_up_EGH: Tensor, down_EHF: Tensor
) -> Tensor:
    """As `looped_experts`, by ``F.grouped_mm``, for what `grouped_mm_takes`.

    Rows behind the last end are left unwritten by the product and by its gradient: what was
    dropped is cut off on both sides.
    """
    ends_E = routes.counts_E.cumsum(0).to(torch.int32)
    slots_N = torch.arange(len(routes.source_N), device=tokens_XH.device)
    taken_N1 = (slots_N < ends_E[-1]).unsqueeze(-1)
    picked_NH = _PickRows.apply(tokens_XH, routes.source_N, routes.place_XK)
    picked_NH = torch.where(taken_N1, picked_NH, 0)
    hidden_NG = F.grouped_mm(picked_NH, gate_up_EGH.transpose(1, 2), offs=ends_E)
    gate_NF, up_NF = hidden_NG.chunk(2, dim=-1)
    outputs_NH = F.grouped_mm(F.silu(gate_NF) * up_NF, down_EHF.transpose(1, 2), offs=ends_E)
    outputs_NH = torch.where(taken_N1, outputs_NH, 0)
    outputs_XKH = _PlaceRows.apply(outputs_NH, routes.place_XK)
    return (outputs_XKH * routes.weights_XK.unsqueeze(-1)).sum(1).to(tokens_XH.dtype)


class _PickRows(torch.autograd.Function):
    """Rows of the tokens by assignment; backward gathers, where indexing would add by atomics."""

    @staticmethod
    def forward(ctx, tokens_XH: Tensor, source_N: Tensor, place_XK: Tensor) -> Tensor:
        ctx.save_for_backward(place_XK)
        return tokens_XH.index_select(0, source_N)

    @staticmethod
    def backward(ctx, grad_NH: Tensor) -> tuple[Tensor | None, ...]:
        (place_XK,) = ctx.saved_tensors
        return grad_NH[place_XK].sum(1), None, None


class _PlaceRows(torch.autograd.Function):
    """Rows of the assignments by token and choice; each stands once, so backward gathers too."""

    @staticmethod
    def forward(ctx, rows_NH: Tensor, place_XK: Tensor) -> Tensor:
        ctx.save_for_backward(place_XK)
        return rows_NH[place_XK]

    @staticmethod
    def backward(ctx, grad_XKH: Tensor) -> tuple[Tensor, None]:
        (place_XK,) = ctx.saved_tensors
        grad_NH = torch.empty_like(grad_XKH).view(-1, grad_XKH.shape[-1])
        return grad_NH.index_copy(0, place_XK.flatten(), grad_XKH.flatten(0, 1)), None


class TakeRows(torch.autograd.Function):
    """``rows[index]`` for an index without repetitions: its gradient is a copy, not a sum."""

    @staticmethod
    def forward(ctx, rows_XH: Tensor, index_N: Tensor) -> Tensor:
        ctx.save_for_backward(index_N)
        ctx.num_rows = len(rows_XH)
        return rows_XH.index_select(0, index_N)

    @staticmethod
    def backward(ctx, grad_NH: Tensor) -> tuple[Tensor, None]:
        (index_N,) = ctx.saved_tensors
        grad_XH = grad_NH.new_zeros(ctx.num_rows, *grad_NH.shape[1:])
        return grad_XH.index_copy(0, index_N, grad_NH), None
