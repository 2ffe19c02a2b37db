"""Tokens to hidden states in front of the head, for rows of one document and of several.

Shape legend: B rows, T tokens, H language width.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Cache

from model.documents import document_mask, positions_in_documents
from model.fusion import Fusion


class Body:
    """The body of a causal language model, with whatever the fusion's context lets into it.

    Args:
        language: a transformers causal language model.
        fusion: installed in it.
    """

    def __init__(self, language: nn.Module, fusion: Fusion) -> None:
        self.language = language
        self.fusion = fusion
        self.takes_positions = "position_ids" in inspect.signature(language.forward).parameters
        self._packed: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, input_ids: Tensor, mask: Tensor, documents: Tensor | None = None) -> Tensor:
        """Hidden states ``[B, T, H]``.

        Args:
            input_ids: long ``[B, T]``.
            mask: bool ``[B, T]``, False for padding.
            documents: long ``[B, T]``, see `model.documents`; None when every row is one document.

        Raises:
            ValueError: rows have several documents, and the model cannot keep them apart.
        """
        if documents is not None:
            return self._apart(input_ids, documents)
        keywords = {}
        if self.takes_positions:
            keywords["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return self._run(input_ids, attention_mask=mask.long(), **keywords)

    def cached(
        self, input_ids: Tensor, mask: Tensor, cache: Cache | None = None
    ) -> tuple[Tensor, Cache | None]:
        """Hidden states ``[B, T, H]`` behind what a cache keeps, and the cache, which grows in place.

        Args:
            input_ids: long ``[B, T]``, each row of one document.
            mask: bool ``[B, P + T]``, also of the P tokens that the cache keeps.
            cache: of an earlier call; None begins.
        """
        keywords = {}
        if self.takes_positions:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
            keywords["position_ids"] = positions[:, -input_ids.shape[1] :]
        found = self.language.base_model(
            input_ids=input_ids,
            attention_mask=mask.long(),
            past_key_values=cache,
            use_cache=True,
            **keywords,
        )
        return found.last_hidden_state, getattr(found, "past_key_values", None)

    def _apart(self, input_ids: Tensor, documents: Tensor) -> Tensor:
        """In the first way that keeps documents apart.

        Positions that begin anew are how transformers knows documents apart, without a dense mask.
        A family that does not hand them to its mask (OPT in 5.23) says nothing, so that it is tried
        once; such a family gets the mask.
        """
        if self._packed is None:
            context, self.fusion.context = self.fusion.context, None
            ways = (self._by_positions, self._by_mask) if self.takes_positions else ()
            self._packed = next((w for w in ways if keeps_apart(w, input_ids.device)), None)
            self.fusion.context = context
        if self._packed is None:
            raise ValueError(
                f"{type(self.language).__name__} cannot keep the documents of a row apart; set "
                "data.pack_tokens=null"
            )
        return self._packed(input_ids, documents)

    def _by_positions(self, input_ids: Tensor, documents: Tensor) -> Tensor:
        return self._run(input_ids, position_ids=positions_in_documents(documents))

    def _by_mask(self, input_ids: Tensor, documents: Tensor) -> Tensor:
        mask = document_mask(documents, self.language.dtype)
        positions = positions_in_documents(documents)
        return self._run(input_ids, position_ids=positions, attention_mask=mask)

    def _run(self, input_ids: Tensor, **keywords: Tensor) -> Tensor:
        body = self.language.base_model
        return body(input_ids=input_ids, use_cache=False, **keywords).last_hidden_state


@torch.no_grad()
def keeps_apart(body: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> bool:
    """Whether a document's hidden states are the same behind other documents and alone.

    Args:
        body: token ids and documents, both ``[B, T]``, to hidden states.
        device: of the model.
    """
    ids = torch.tensor([[3, 5, 4, 6, 3], [7, 3, 8, 6, 3]], device=device)
    number = torch.tensor([[0, 0, 0, 1, 1]], device=device)
    # Calls of one shape are computed alike: what leaks is told by a single bit.
    one, two = (body(row, number)[:, 3:] for row in ids.split(1))
    alone = body(ids[:1, 3:], torch.zeros(1, 2, dtype=torch.long, device=device))
    # Another shape, another order of sums: some units of the last place of the largest value. That
    # tells wrong positions.
    tolerance = 16 * torch.finfo(alone.dtype).eps * float(alone.abs().max())
    return torch.equal(one, two) and float((one - alone).abs().max()) <= tolerance
