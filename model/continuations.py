"""How likely texts are behind a prompt, which is computed once for all of them.

Shape legend: B prompts, T tokens of a prompt, K texts, S tokens of a text, H language width.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import Cache

from model.body import Body
from model.fusion import Fusion, FusionContext
from model.router_watch import RouterWatch

Loss = Callable[[Tensor, Tensor, FusionContext], tuple[Tensor, Tensor]]


class Continuations:
    """Prompts of which keys and values are kept, those of their media too.

    Args:
        body: of the language model.
        fusion: installed in it.
        context: of the prompts, media encoded; it is used up.
        loss: hidden states ``[B, T, H]`` and targets ``[B, T]`` to cross entropies ``[B, T - 1]``.
        routers: of the model; what they put out is forgotten after each call.
        input_ids: long ``[B, T]``, padded on the left.
        attention_mask: bool ``[B, T]``.

    Raises:
        ValueError: a prompt ends with padding, or the language model keeps nothing that could be copied.
    """

    def __init__(
        self,
        body: Body,
        fusion: Fusion,
        context: FusionContext,
        loss: Loss,
        routers: RouterWatch,
        input_ids: Tensor,
        attention_mask: Tensor,
    ) -> None:
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("a prompt ends with padding; pad prompts on the left to continue them")
        self._body, self._fusion, self._loss = body, fusion, loss
        self._mask, self._routers = attention_mask, routers
        context.generating, context.real_tokens = True, None
        with fusion.using(context):
            hidden, self._cache = body.cached(input_ids, attention_mask)
        routers.clear()
        if not isinstance(self._cache, Cache):
            raise ValueError(f"{type(body.language).__name__} keeps no keys and values of a prompt")
        self._last = hidden[:, -1:]
        self._context = context

    @torch.no_grad()
    def losses(self, texts: Tensor, mask: Tensor) -> Tensor:
        """Cross entropy ``[B, K, S]`` of each text's tokens behind each prompt, fp32, 0 for padding.

        Args:
            texts: long ``[K, S]``, padded on the right; the same behind all prompts, without media.
            mask: bool ``[K, S]``, False for padding.
        """
        prompts, count = len(self._mask), len(texts)
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(count)
        whole = torch.cat(
            [self._mask.repeat_interleave(count, dim=0), mask.repeat(prompts, 1)], dim=1
        )
        context = replace(
            self._context,
            seen=self._context.seen.repeat_interleave(count),
            keys_values={
                index: tuple(t.repeat_interleave(count, dim=0) for t in kept)
                for index, kept in self._context.keys_values.items()
            },
        )
        ids = texts.repeat(prompts, 1)
        targets = ids.masked_fill(~mask.repeat(prompts, 1), -100)
        # The first token of a text is told by the last of its prompt.
        first = self._last.repeat_interleave(count, dim=0)
        with self._fusion.using(context):
            hidden, _ = self._body.cached(ids, whole, cache)
            _, losses = self._loss(
                torch.cat([first, hidden], dim=1),
                torch.cat([torch.full_like(ids[:, :1], -100), targets], dim=1),
                context,
            )
        self._routers.clear()
        return losses.unflatten(0, (prompts, count))
