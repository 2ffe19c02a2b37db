"""The feed-forward of a gated block: dense, a mixture of stacked experts, or DeepSpeed's own MoE.

The stacked experts are an ordinary module under ZeRO 1/2/3 and have the shape that DeepSpeed AutoEP
takes over for expert parallelism. AutoEP replaces the whole module, so the router losses are
computed outside of it, from logits that `flamingo.py` captures.
Shape legend: B batch, T tokens, H width, F hidden width, E experts, K experts per token.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class DenseFeedForward(nn.Module):
    """SwiGLU without bias: ``down(silu(gate(x)) * up(x))``.

    Source: arXiv:2002.05202. Gate and up stand in one matrix, gate first, as in `StackedExperts`.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(width, 2 * hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Return ``[..., H]``."""
        gate, up = self.gate_up_proj(hidden_BTH).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


class RouterGate(nn.Linear):
    """Router logits, always computed in fp32: bf16 logits flip the choice of close experts."""

    def forward(self, tokens_XH: Tensor) -> Tensor:
        """Return fp32 logits ``[X, E]``; an fp64 module keeps fp64."""
        dtype = torch.promote_types(tokens_XH.dtype, torch.float32)
        return F.linear(tokens_XH.to(dtype), self.weight.to(dtype))


class StackedExperts(nn.Module):
    """E SwiGLU experts in two stacked weights, computed on tokens sorted by expert."""

    def __init__(self, width: int, hidden: int, num_experts: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * hidden, width))
        self.down_proj = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.act_fn = nn.SiLU()
        # One draw over the whole stack: every expert starts different, each as nn.Linear would.
        for weight in (self.gate_up_proj, self.down_proj):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, tokens_XH: Tensor, counts_E: Tensor) -> Tensor:
        """Apply expert e to its ``counts_E[e]`` tokens; the tokens come sorted by expert.

        Both ways give every expert a gradient, zeros where it had no token.
        """
        if _grouped_mm_takes(tokens_XH, self.gate_up_proj, self.down_proj):
            ends_E = counts_E.cumsum(0).to(torch.int32)
            gate, up = F.grouped_mm(
                tokens_XH, self.gate_up_proj.transpose(1, 2), offs=ends_E
            ).chunk(2, dim=-1)
            return F.grouped_mm(self.act_fn(gate) * up, self.down_proj.transpose(1, 2), offs=ends_E)
        outputs = []
        for expert, tokens in enumerate(tokens_XH.split(counts_E.tolist())):
            gate, up = F.linear(tokens, self.gate_up_proj[expert]).chunk(2, dim=-1)
            outputs.append(F.linear(self.act_fn(gate) * up, self.down_proj[expert]))
        return torch.cat(outputs)


def _grouped_mm_takes(tokens_XH: Tensor, *weights: Tensor) -> bool:
    """grouped_mm wants float16, bfloat16 or float32 and rows of a multiple of 16 bytes."""
    if tokens_XH.dtype == torch.float64 or any(w.dtype != tokens_XH.dtype for w in weights):
        return False
    bytes_each = tokens_XH.element_size()
    return len(tokens_XH) > 0 and all(
        w.shape[-1] * bytes_each % 16 == 0 and w.shape[-2] * bytes_each % 16 == 0 for w in weights
    )


class ExpertFeedForward(nn.Module):
    """Top-k mixture of experts without token dropping.

    Args:
        width: H.
        hidden: F.
        num_experts: E.
        top_k: K. With K = 1 a token's output is scaled by its router probability, with K > 1 the
            chosen probabilities are renormalised (AutoEP: ``route_norm = top_k > 1``).
    """

    def __init__(self, width: int, hidden: int, *, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.gate = RouterGate(width, num_experts, bias=False)
        self.experts = StackedExperts(width, hidden, num_experts)

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Return ``[B, T, H]``."""
        tokens_XH = hidden_BTH.flatten(0, -2)
        weights_XK, chosen_XK = self.gate(tokens_XH).softmax(-1).topk(self.top_k, dim=-1)
        if self.top_k > 1:
            weights_XK = weights_XK / weights_XK.sum(-1, keepdim=True)
        chosen = chosen_XK.flatten()
        order = chosen.argsort(stable=True)
        counts_E = F.one_hot(chosen, self.num_experts).sum(0)
        source = order // self.top_k
        outputs = self.experts(tokens_XH[source], counts_E)
        weighted = outputs.to(weights_XK.dtype) * weights_XK.flatten()[order].unsqueeze(-1)
        combined_XH = weighted.new_zeros(tokens_XH.shape).index_add(0, source, weighted)
        return combined_XH.to(hidden_BTH.dtype).view_as(hidden_BTH)


class NativeExperts(nn.Module):
    """``deepspeed.moe.layer.MoE`` with everything random and lossy switched off.

    Its own auxiliary loss averages local tokens and counts padding; instead, the router logits go
    through `router_logits`, where `flamingo.py` captures them for `router_losses`.

    Args:
        width: H.
        hidden: F.
        num_experts: E.
        top_k: K.
        ep_size: ranks that share the experts.
    """

    def __init__(
        self, width: int, hidden: int, *, num_experts: int, top_k: int, ep_size: int = 1
    ) -> None:
        super().__init__()
        from deepspeed.moe.layer import MoE

        self.moe = MoE(
            width,
            DenseFeedForward(width, hidden),
            num_experts=num_experts,
            ep_size=ep_size,
            k=top_k,
            drop_tokens=False,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )
        self.router_logits = nn.Identity()
        self._initialise_experts(num_experts // ep_size, ep_size)

    def _initialise_experts(self, num_local: int, ep_size: int) -> None:
        """DeepSpeed starts all experts as copies of one: draw each by its number in the group."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        base = int(torch.randint(2**31, (1,)))
        for local, expert in enumerate(self.moe.deepspeed_moe.experts.deepspeed_experts):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(base + rank % ep_size * num_local + local)
                for layer in (expert.gate_up_proj, expert.down_proj):
                    layer.reset_parameters()

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Return ``[B, T, H]``."""
        weight = self.moe.deepspeed_moe.gate.wg.weight
        self.router_logits(F.linear(hidden_BTH.flatten(0, -2).float(), weight.float()))
        output, _, _ = self.moe(hidden_BTH)
        return output


def router_losses(
    logits: Tensor,
    token_mask: Tensor,
    top_k: int,
    group: dist.ProcessGroup | None = None,
    *,
    across_ranks: bool = True,
) -> tuple[Tensor, Tensor]:
    """Load-balance and z loss over the real tokens of all ranks.

    With f_e the global fraction of assignments to expert e (a constant), p the probabilities, N the
    global number of real tokens and W ranks, this rank returns ``W * E * sum_e f_e *
    sum_local(p_e) / N`` and ``W * sum_local(logsumexp^2) / N``: the mean over ranks is the loss of
    the joined batch, and the mean of the gradients is its gradient, however unevenly the tokens are
    spread. Perfect balance gives a load-balance loss of 1.

    Args:
        logits: ``[X, E]`` router logits.
        token_mask: bool ``[X]``, False for padding.
        top_k: experts per token.
        group: ranks to count over, default all. Collective: all of them must call this.
        across_ranks: False counts local tokens only and calls no collective.

    Returns:
        (load balance, z), fp32 scalars.

    Source: Switch Transformer (arXiv:2101.03961) equation 4, ST-MoE (arXiv:2202.08906) equation 5.
    """
    num_experts = logits.shape[-1]
    logits = logits.float()
    mask_X1 = token_mask.reshape(-1, 1).to(logits.dtype)
    probabilities = logits.softmax(-1)
    chosen = probabilities.detach().topk(top_k, dim=-1).indices
    counts_E = (F.one_hot(chosen, num_experts).sum(1) * mask_X1).sum(0)
    totals = torch.cat([counts_E, mask_X1.sum().reshape(1)])
    world_size = 1
    if across_ranks and dist.is_available() and dist.is_initialized():
        world_size = dist.get_world_size(group)
        dist.all_reduce(totals, group=group)
    num_tokens = totals[-1].clamp(min=1)
    fraction_E = totals[:-1] / (num_tokens * top_k)
    scale = world_size / num_tokens
    load_balance = num_experts * scale * (fraction_E * (probabilities * mask_X1).sum(0)).sum()
    z_loss = scale * (logits.logsumexp(-1).square() * mask_X1.squeeze(-1)).sum()
    return load_balance, z_loss
