"""The routers of a model's gated blocks: what they put out in a forward, and what becomes of it."""

import torch
from torch import Tensor, nn

from model.router import RouterProbe, find_router, router_losses
from model.router_loads import RouterLoads


class RouterWatch:
    """Keeps the logits of one forward until they are used; false where no block has experts.

    Args:
        blocks: the gated blocks.
        top_k: experts per token.
        jitter: noise on the routers' inputs in training.

    Attributes:
        loads: set it to have the routers of the coming forwards counted; None for not.
    """

    def __init__(self, blocks: nn.ModuleList, top_k: int, jitter: float) -> None:
        self.loads: RouterLoads | None = None
        self._blocks, self._top_k, self._jitter = blocks, top_k, jitter
        self._logits: dict[int, Tensor] = {}
        self._probed: dict[int, nn.Module] = {}
        self.attach()

    def __bool__(self) -> bool:
        return bool(self._probed)

    def attach(self) -> None:
        """Watch the routers from now on.

        Call again after ``deepspeed.initialize``, which may have replaced the expert modules.
        Calling it twice changes nothing.
        """
        for index, block in enumerate(self._blocks):
            router = find_router(block.feed_forward)
            if router is not None and self._probed.get(index) is not router:
                RouterProbe(self._logits, index, self._jitter).attach(router)
                self._probed[index] = router

    def clear(self) -> None:
        """Forget what was put out."""
        self._logits.clear()

    def losses(self, *, like: Tensor, across_ranks: bool) -> tuple[Tensor, Tensor]:
        """(load balance, z), means over the blocks; 0 without experts. What was put out is forgotten.

        Args:
            like: a scalar of the dtype and device of those zeros.
            across_ranks: see `model.router.router_losses`.
        """
        if not self._logits:
            return like.new_zeros(()), like.new_zeros(())
        indices = sorted(self._logits)
        losses = [
            router_losses(self._logits[index], self._top_k, across_ranks=across_ranks)
            for index in indices
        ]
        if self.loads is not None:
            for index in indices:
                self.loads.add(index, self._logits[index].detach(), self._top_k)
        self.clear()
        load_balance, z_loss = (torch.stack(terms).mean() for terms in zip(*losses, strict=True))
        return load_balance, z_loss
