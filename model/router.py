"""Which expert takes which token, and the losses that keep the experts evenly used.

Shape legend: X tokens, H width, E experts, K experts per token, N = X * K assignments.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class RouterGate(nn.Linear):
    """Router logits, always computed in fp32: bf16 logits flip the choice of close experts."""

    def forward(self, tokens_XH: Tensor) -> Tensor:
        """Return fp32 logits ``[X, E]``; an fp64 module keeps fp64."""
        dtype = torch.promote_types(tokens_XH.dtype, torch.float32)
        return F.linear(tokens_XH.to(dtype), self.weight.to(dtype))


class RouterProbe:
    """Hooks on a router: noise on its input in training, and its logits into a dict.

    It stands outside of the router, which DeepSpeed AutoEP replaces by a ``nn.Linear`` of its own,
    and is an object, not a closure, so that a copied model has a probe and a dict of its own.

    Args:
        store: gets ``store[index] = logits`` at every forward.
        index: the key.
        jitter: in training every input value is multiplied by its own uniform draw from
            ``[1 - jitter, 1 + jitter]``.

    Source: jitter as in Switch Transformer (arXiv:2101.03961) section 2.4.
    """

    def __init__(self, store: dict[int, Tensor], index: int, jitter: float) -> None:
        self.store = store
        self.index = index
        self.jitter = jitter

    def attach(self, router: nn.Module) -> None:
        """Work on this module from now on, which maps ``[X, H]`` to logits ``[X, E]``."""
        router.register_forward_pre_hook(self.add_noise)
        router.register_forward_hook(self.keep_logits)

    def add_noise(self, router: nn.Module, args: tuple) -> tuple | None:
        """Forward pre-hook; `None` leaves the input as it is."""
        if self.jitter == 0 or not router.training:
            return None
        tokens_XH, *rest = args
        # Noise in fp32: in bf16 a small jitter would have three values.
        dtype = torch.promote_types(tokens_XH.dtype, torch.float32)
        noise = torch.empty_like(tokens_XH, dtype=dtype).uniform_(1 - self.jitter, 1 + self.jitter)
        return ((tokens_XH * noise).to(tokens_XH.dtype), *rest)

    def keep_logits(self, router: nn.Module, args: tuple, logits: Tensor) -> None:
        """Forward hook."""
        self.store[self.index] = logits


def find_router(feed_forward: nn.Module) -> nn.Module | None:
    """The module of a mixture that puts out router logits; `None` for a dense feed-forward.

    AutoEP's gate first: its layer may also hold the router under our name.
    """
    for name in ("routed.router.gate", "routed.router_logits", "routed.gate"):
        try:
            return feed_forward.get_submodule(name)
        except AttributeError:
            continue
    return None


class Routes(NamedTuple):
    """The assignments of tokens to experts, sorted by expert.

    Attributes:
        source_N: token of each assignment; within an expert all first choices in the order of the
            tokens, then all second ones, ... Assignments that a full expert dropped stand last.
        counts_E: assignments that each expert takes; their sum is less than N after drops.
        place_XK: where each token's k-th choice stands among the N.
        weights_XK: what its output is multiplied with.
    """

    source_N: Tensor
    counts_E: Tensor
    place_XK: Tensor
    weights_XK: Tensor


def choose_experts(logits_XE: Tensor, top_k: int, capacity: int | None = None) -> Routes:
    """Send every token to the K experts of its largest logits.

    Args:
        logits_XE: router logits.
        top_k: K. With K = 1 the weight is the router probability, with K > 1 the chosen
            probabilities are renormalised (AutoEP: ``route_norm = top_k > 1``).
        capacity: an expert takes at most this many; first choices go before second ones, then
            earlier tokens before later ones. The weights of what is dropped go to nobody else.

    Works without waiting for the device: no shape depends on a value.
    """
    num_tokens, num_experts = logits_XE.shape
    weights_XK, chosen_XK = logits_XE.softmax(-1).topk(top_k, dim=-1)
    if top_k > 1:
        weights_XK = weights_XK / weights_XK.sum(-1, keepdim=True)
    expert_N, order_N = chosen_XK.t().flatten().sort(stable=True)
    experts = torch.arange(num_experts, device=logits_XE.device)
    counts_E = (expert_N.unsqueeze(-1) == experts).sum(0)
    if capacity is not None:
        slots_N = torch.arange(len(expert_N), device=logits_XE.device)
        rank_N = slots_N - (counts_E.cumsum(0) - counts_E)[expert_N]
        last = expert_N.masked_fill(rank_N >= capacity, num_experts).sort(stable=True).indices
        order_N = order_N[last]
        counts_E = counts_E.clamp(max=capacity)
    place_KX = torch.empty_like(order_N)
    place_KX[order_N] = torch.arange(len(order_N), device=order_N.device)
    place_XK = place_KX.view(top_k, num_tokens).t().contiguous()
    # A rank without tokens has no modulus.
    return Routes(order_N % max(num_tokens, 1), counts_E, place_XK, weights_XK)


def expert_capacity(factor: float, num_tokens: int, *, num_experts: int, top_k: int) -> int:
    """Assignments that one expert takes: ``factor`` times its even share, rounded up."""
    return math.ceil(factor * num_tokens * top_k / num_experts)


def router_losses(
    logits_XE: Tensor,
    top_k: int,
    group: dist.ProcessGroup | None = None,
    *,
    across_ranks: bool = True,
) -> tuple[Tensor, Tensor]:
    """Load-balance and z loss over the tokens of all ranks.

    With f_e the global fraction of assignments to expert e (a constant), p the probabilities, N the
    global number of tokens and W ranks, this rank returns ``W * E * sum_e f_e * sum_local(p_e) / N``
    and ``W * sum_local(logsumexp^2) / N``: the mean over ranks is the loss of the joined batch, and
    the mean of the gradients is its gradient, however unevenly the tokens are spread. Perfect
    balance gives a load-balance loss of 1. A rank may have no token: it returns zeros that can be
    differentiated. What an expert dropped counts as well, or a full expert would not be unloaded.

    Args:
        logits_XE: router logits, of tokens that are not padding.
        top_k: experts per token.
        group: ranks to count over, default all. Collective: all of them must call this.
        across_ranks: False counts local tokens only and calls no collective.

    Returns:
        (load balance, z), fp32 scalars.

    Source: Switch Transformer (arXiv:2101.03961) equation 4, ST-MoE (arXiv:2202.08906) equation 5.
    """
    num_tokens, num_experts = logits_XE.shape
    logits_XE = logits_XE.float()
    probabilities_XE = logits_XE.softmax(-1)
    chosen_XK = probabilities_XE.detach().topk(top_k, dim=-1).indices
    experts = torch.arange(num_experts, device=logits_XE.device)
    counts_E = (chosen_XK.unsqueeze(-1) == experts).sum((0, 1)).float()
    totals = torch.cat([counts_E, counts_E.new_full((1,), num_tokens)])
    world_size = 1
    if across_ranks and dist.is_available() and dist.is_initialized():
        world_size = dist.get_world_size(group)
        dist.all_reduce(totals, group=group)
    all_tokens = totals[-1].clamp(min=1)
    fraction_E = totals[:-1] / (all_tokens * top_k)
    scale = world_size / all_tokens
    load_balance = num_experts * scale * (fraction_E * probabilities_XE.sum(0)).sum()
    z_loss = scale * logits_XE.logsumexp(-1).square().sum()
    return load_balance, z_loss
