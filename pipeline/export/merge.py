"""Experts of a block to one dense feed-forward: an approximation, and measured as one."""

import torch
from torch import Tensor, nn

from data_prep.errors import ConfigError, Problem
from model.feed_forward import DenseFeedForward
from model.flamingo import Flamingo
from pipeline.distributed import DistInfo
from pipeline.evaluation.asker import Asker, Text
from pipeline.evaluation.task import read_task
from pipeline.export.config import has_experts
from pipeline.trained import Trained


class RoutingWeights:
    """What each expert's output is multiplied with, on average over tokens; in the place of `RouterLoads`.

    Attributes:
        sums: block to fp64 ``[E]``.
        tokens: block to how many.
    """

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.tokens: dict[int, int] = {}

    def add(self, block: int, router_logits: Tensor, top_k: int) -> None:
        """Count the tokens of one forward; weights as in `model.router.choose_experts`."""
        given, chosen = router_logits.double().softmax(-1).topk(top_k, dim=-1)
        if top_k > 1:
            given = given / given.sum(-1, keepdim=True)
        found = router_logits.new_zeros(router_logits.shape[1], dtype=torch.float64)
        found.index_add_(0, chosen.flatten(), given.flatten())
        self.sums[block] = self.sums.get(block, 0) + found
        self.tokens[block] = self.tokens.get(block, 0) + len(router_logits)

    def means(self) -> dict[int, list[float]]:
        """Block to the mean weight of each expert: their sum is 1, or less where one is chosen (top_k 1)."""
        return {b: (s / max(self.tokens[b], 1)).tolist() for b, s in self.sums.items()}


@torch.no_grad()
def merge_experts(model: Flamingo, weights: dict[int, list[float]]) -> list[int]:
    """Put the mean of its experts, by what each one adds, in the place of every mixture.

    What a token's router would have chosen is lost: the more alike the experts, the less that costs. A shared
    expert stays exactly what it was, side by side with the mean in one feed-forward.

    Args:
        model: changed in place.
        weights: block to the mean weight of each expert, as of `RoutingWeights`; the mean of the experts
            adds as much as their sum.

    Returns:
        the blocks that were changed.

    Source: the simplest of the merges compared in MC-SMoE (arXiv:2310.01334), without aligning the experts'
        hidden units, and by routing weights where it counts assignments.
    """
    for number, means in weights.items():
        mixture = model.gated_blocks[number].feed_forward
        experts, total = mixture.routed.experts, sum(means)
        shares = [mean / total for mean in means]
        up = _mean(experts.gate_up_proj, shares)
        down = _mean(experts.down_proj, shares) * total
        if mixture.shared is not None:
            own_gate, own_up = up.chunk(2)
            gate, more = mixture.shared.gate_up_proj.weight.chunk(2)
            up = torch.cat([own_gate, gate, own_up, more])
            down = torch.cat([down, mixture.shared.down_proj.weight], dim=1)
        dense = DenseFeedForward(up.shape[1], up.shape[0] // 2).to(up.device, up.dtype)
        dense.gate_up_proj.weight = nn.Parameter(up)
        dense.down_proj.weight = nn.Parameter(down)
        model.gated_blocks[number].feed_forward = dense
    return sorted(weights)


def merge_measured(trained: Trained, samples: int) -> dict:
    """Merge, and see what that costs on captions that were held out of training.

    Args:
        trained: whose model is changed in place.
        samples: at most so many.

    Returns:
        ``blocks``, ``samples``, and the loss in nats per token, ``loss_before`` and ``loss_after``.

    Raises:
        ConfigError: the model has no experts, or no captions are held out.
    """
    model = trained.objective.model
    blocks = has_experts(model)
    if not blocks:
        rule = "is for a model with experts; this one has none"
        raise ConfigError([Problem("--experts", "merge", rule, "leave it out")])
    data = trained.config.data
    if data.held_out is None and not data.held_out_fraction:
        rule = "holds captions out of training, to measure what a merge costs"
        remedy = "give a folder of such captions, or export with --experts keep"
        raise ConfigError([Problem("data.held_out", None, rule, remedy)])
    section = trained.config.evaluation.model_copy(update={"max_samples": samples, "data": None})
    records = read_task(trained.config.model_copy(update={"evaluation": section})).records.items
    asker = Asker(trained.objective, model, DistInfo.one(), silent=True)
    texts = [Text([r.image], r.texts[0]) for r in records]
    model.routers.loads = routing = RoutingWeights()
    before, tokens = asker.nats(texts)
    model.routers.loads = None
    merged = merge_experts(model, routing.means())
    after, _ = asker.nats(texts)
    return {
        "blocks": merged,
        "samples": len(records),
        "loss_before": float(before.sum() / tokens.sum()),
        "loss_after": float(after.sum() / tokens.sum()),
    }


def _mean(stacked: Tensor, weights: list[float]) -> Tensor:
    factors = torch.tensor(weights, dtype=torch.float64, device=stacked.device)
    return torch.einsum("e,eij->ij", factors, stacked.double()).to(stacked.dtype)
