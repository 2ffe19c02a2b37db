"""A mixture of experts in the feed-forward of a gated block: ours, or DeepSpeed's own MoE.

The stacked experts are an ordinary module under ZeRO 1/2/3, and `RoutedExperts` has the shape that
DeepSpeed AutoEP takes over for expert parallelism. AutoEP replaces that module whole, so the router
losses are computed outside of it, from logits that a `model.router.RouterProbe` keeps.
Shape legend: B batch, T tokens of a row, X tokens, H width, F hidden width, E experts, K experts per
token, N = X * K assignments.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.expert_kernels import (
    TakeRows,
    grouped_experts,
    grouped_mm_takes,
    looped_experts,
)
from model.feed_forward import DenseFeedForward
from model.router import RouterGate, Routes, choose_experts, expert_capacity


class StackedExperts(nn.Module):
    """E SwiGLU experts without bias, in two stacked weights."""

    def __init__(self, width: int, hidden: int, num_experts: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * hidden, width))
        self.down_proj = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.act_fn = nn.SiLU()  # read by AutoEP, which refuses another activation than its own
        # One draw over the whole stack: every expert starts different, each as nn.Linear would.
        for weight in (self.gate_up_proj, self.down_proj):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, tokens_XH: Tensor, counts_E: Tensor, routes: Routes | None = None) -> Tensor:
        """Apply the experts; all of them get a gradient, zeros where one had no token.

        Args:
            tokens_XH: sorted by expert, or in any order together with ``routes``.
            counts_E: assignments of each expert.
            routes: where the tokens go; without, token x goes to one expert, with weight 1.

        Returns:
            ``[X, H]``, the weighted sum over the choices of each token.
        """
        if tokens_XH.is_meta:  # as many operations as any split of the tokens would need
            top_k = 1 if routes is None else routes.place_XK.shape[1]
            gate, up = F.linear(tokens_XH.repeat(top_k, 1), self.gate_up_proj[0]).chunk(2, dim=-1)
            outputs_NH = F.linear(self.act_fn(gate) * up, self.down_proj[0])
            return outputs_NH.unflatten(0, (top_k, -1)).sum(0)
        if routes is None:
            slots = torch.arange(len(tokens_XH), device=tokens_XH.device)
            ones = tokens_XH.new_ones(len(tokens_XH), 1)
            routes = Routes(slots, counts_E, slots.unsqueeze(-1), ones)
        compute = looped_experts
        if tokens_XH.is_cuda and grouped_mm_takes(tokens_XH, self.gate_up_proj, self.down_proj):
            compute = grouped_experts
        return compute(tokens_XH, routes, self.gate_up_proj, self.down_proj)


class RoutedExperts(nn.Module):
    """Top-k mixture of experts; no token is lost unless a capacity is set.

    Args:
        width: H.
        hidden: F.
        num_experts: E.
        top_k: K; see `choose_experts` for the weights.
        capacity_factor: in training an expert takes at most this times its even share of the
            assignments. In evaluation nothing is dropped, or a caption would depend on the batch
            that it was computed in.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        num_experts: int,
        top_k: int,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.capacity_factor = capacity_factor
        self.gate = RouterGate(width, num_experts, bias=False)
        self.experts = StackedExperts(width, hidden, num_experts)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[..., H]`` to ``[..., H]``."""
        tokens_XH = hidden.flatten(0, -2)
        capacity = None
        if self.training and self.capacity_factor is not None:
            capacity = expert_capacity(
                self.capacity_factor,
                len(tokens_XH),
                num_experts=self.num_experts,
                top_k=self.top_k,
            )
        routes = choose_experts(self.gate(tokens_XH), self.top_k, capacity)
        return self.experts(tokens_XH, routes.counts_E, routes).view_as(hidden)


class NativeRouter(nn.Module):
    """The logits of DeepSpeed's gate, in a module of its own that a `RouterProbe` can hook.

    DeepSpeed multiplies with its router weight without calling the module that holds it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None

    def forward(self, tokens_XH: Tensor, weight_EH: Tensor) -> Tensor:
        """Return fp32 logits ``[X, E]``; remember the tokens, which a probe may have changed."""
        self.seen = tokens_XH
        return F.linear(tokens_XH.float(), weight_EH.float())

    def before_gate(self, gate: nn.Module, args: tuple) -> tuple:
        """Forward pre-hook of DeepSpeed's gate: let it route the tokens that this module saw."""
        tokens_XH, *rest = args
        self(tokens_XH, gate.wg.weight)
        seen, self.seen = self.seen, None
        return (seen, *rest)


class NativeExperts(nn.Module):
    """``deepspeed.moe.layer.MoE`` with everything random and lossy switched off.

    Its own auxiliary loss averages local tokens; instead, the router logits go through
    ``router_logits``, where a probe keeps them for `model.router.router_losses`.

    Args:
        width: H.
        hidden: F.
        num_experts: E.
        top_k: K.
    """

    def __init__(self, width: int, hidden: int, *, num_experts: int, top_k: int) -> None:
        super().__init__()
        from deepspeed.moe.layer import MoE

        self.num_experts = num_experts
        self.top_k = top_k
        self.moe = MoE(
            width,
            DenseFeedForward(width, hidden),
            num_experts=num_experts,
            ep_size=1,
            k=top_k,
            drop_tokens=False,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )
        self.router_logits = NativeRouter()
        self.moe.deepspeed_moe.gate.register_forward_pre_hook(self.router_logits.before_gate)
        # DeepSpeed starts all experts as copies of one.
        for expert in self.moe.deepspeed_moe.experts.deepspeed_experts:
            expert.gate_up_proj.reset_parameters()
            expert.down_proj.reset_parameters()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[..., H]`` to ``[..., H]``."""
        if hidden.numel() == 0:  # DeepSpeed fails without tokens; gradients must be zeros, not None
            self.router_logits(hidden.flatten(0, -2), self.moe.deepspeed_moe.gate.wg.weight)
            return hidden + 0 * sum(parameter.sum() for parameter in self.parameters())
        output, _, _ = self.moe(hidden)
        return output


class MixtureFeedForward(nn.Module):
    """A mixture of experts, and beside it, where there is one, an expert that every token passes.

    Args:
        routed: `RoutedExperts` or `NativeExperts`; later maybe AutoEP's layer in its place.
        shared: the shared expert, whose output is added.

    Source: shared expert as in DeepSeekMoE (arXiv:2401.06066) section 3.2.
    """

    def __init__(self, routed: nn.Module, shared: DenseFeedForward | None = None) -> None:
        super().__init__()
        self.routed = routed
        self.shared = shared

    def forward(self, hidden_BTH: Tensor, real_tokens: Tensor | None = None) -> Tensor:
        """Return ``[B, T, H]``.

        Args:
            hidden_BTH: hidden states.
            real_tokens: long ``[N]``, indices into the B * T tokens of those that are not padding,
                each once; `None` for all. Padding is seen by no router, takes no expert's capacity
                and gets an output of 0.
        """
        if real_tokens is None:
            return self._mix(hidden_BTH)
        tokens_XH = hidden_BTH.flatten(0, 1)
        # AutoEP takes three dimensions.
        mixed_NH = self._mix(TakeRows.apply(tokens_XH, real_tokens).unsqueeze(0)).squeeze(0)
        padded_XH = mixed_NH.new_zeros(tokens_XH.shape).index_copy(0, real_tokens, mixed_NH)
        return padded_XH.view_as(hidden_BTH)

    def _mix(self, hidden: Tensor) -> Tensor:
        routed = self.routed(hidden)
        return routed if self.shared is None else routed + self.shared(hidden)


def upcycled(
    dense: dict[str, Tensor], num_experts: int, *, top_k: int, shared_expert: bool = False
) -> dict[str, Tensor]:
    """Weights that make a `MixtureFeedForward` compute what a dense SwiGLU computed.

    Every expert is a copy, whatever the router says; the router keeps its own draw. A shared expert
    starts with an output of 0.

    Args:
        dense: ``gate_up_proj.weight`` and ``down_proj.weight`` of a `DenseFeedForward`.
        num_experts: E.
        top_k: K of the mixture.
        shared_expert: whether the mixture has one.

    Returns:
        names and values below the `MixtureFeedForward` with `RoutedExperts`; what is not among
        them (router, first matrix of the shared expert) stays as it was drawn.

    Raises:
        ValueError: a weight is missing, or ``top_k`` is 1 with more than one expert.

    Source: sparse upcycling (arXiv:2212.05055).
    """
    if top_k == 1 and num_experts > 1:
        raise ValueError(
            f"a dense feed-forward cannot become {num_experts} experts with top_k = 1: the router's "
            "probability, below 1, would scale what it computes; take top_k of 2 or more"
        )
    missing = {"gate_up_proj.weight", "down_proj.weight"} - set(dense)
    if missing:
        raise ValueError(f"not a dense swiglu feed-forward: no {', '.join(sorted(missing))}")
    weights = {
        f"routed.experts.{name}": dense[f"{name}.weight"].repeat(num_experts, 1, 1)
        for name in ("gate_up_proj", "down_proj")
    }
    if shared_expert:
        weights["shared.down_proj.weight"] = torch.zeros_like(dense["down_proj.weight"])
    return weights
