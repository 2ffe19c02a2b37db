"""How evenly the routers use their experts, counted over forwards; for looking at, not for training.

Shape legend: X tokens, E experts, K experts per token.
"""

import math

import torch
from torch import Tensor


class RouterLoads:
    """Counts of this rank's tokens, to be summed over ranks by who wants them.

    Attributes:
        sums: block to fp32 ``[E + 2]``: assignments of each expert, then the summed entropy of the
            tokens' router probabilities in nats, then the tokens.
    """

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}

    def add(self, block: int, logits_XE: Tensor, top_k: int) -> None:
        """Count the tokens of one forward.

        Args:
            block: number of the gated block.
            logits_XE: router logits of tokens that are not padding.
            top_k: K. What a full expert dropped counts as well.
        """
        num_tokens, num_experts = logits_XE.shape
        log_p_XE = logits_XE.float().log_softmax(-1)
        chosen_XK = log_p_XE.topk(top_k, dim=-1).indices
        experts = torch.arange(num_experts, device=logits_XE.device)
        counts_E = (chosen_XK.unsqueeze(-1) == experts).sum((0, 1)).float()
        entropy = -(log_p_XE.exp() * log_p_XE).sum()
        found = torch.cat([counts_E, entropy.view(1), counts_E.new_full((1,), num_tokens)])
        self.sums[block] = self.sums[block] + found if block in self.sums else found


def router_figures(sums: list[float]) -> tuple[list[float], float]:
    """(share of the assignments each expert gets, times E; mean entropy over its maximum ln E).

    A share of 1 is an even one. Both are 0 where there was no token.

    Args:
        sums: of one block, as in `RouterLoads.sums`, over all ranks.
    """
    *counts, entropy, tokens = sums
    num_experts, assignments = len(counts), max(sum(counts), 1.0)
    most = math.log(num_experts) if num_experts > 1 else 1.0
    shares = [num_experts * count / assignments for count in counts]
    return shares, entropy / max(tokens, 1.0) / most
