"""Tokens that the frozen language model does not know: trained parameters beside its frozen embedding.

Shape legend: B batch, T text tokens, H language width, V columns of the frozen head, J new tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

IMAGE_TOKEN = "<image>"
END_OF_CHUNK = "<|endofchunk|>"
# In the order in which open_flamingo adds them, so that the rows of its checkpoints fit.
NEW_TOKENS = (END_OF_CHUNK, IMAGE_TOKEN)


@dataclass(frozen=True)
class TokenIds:
    """Ids of the new tokens in the tokenizer.

    An id may be beyond the frozen embedding or one of its padding rows, which were never trained.

    Attributes:
        media: kind of media ("image", ...) to the id of its token; never a target.
        text: ids that are predicted like any other, here the end of a chunk.
    """

    media: dict[str, int]
    text: tuple[int, ...] = ()

    @property
    def ordered(self) -> tuple[int, ...]:
        """All ids in the order of the rows of `NewTokens`: text, then media."""
        return (*self.text, *self.media.values())

    def is_media(self, input_ids: Tensor) -> Tensor:
        """True where a token stands for a medium, the shape of ``input_ids``."""
        marks = [input_ids == token_id for token_id in self.media.values()]
        return torch.stack(marks).any(0)


class NewTokens(nn.Module):
    """Rows of the new tokens in embedding and head, at first the mean of the frozen rows.

    The rows are handed out as tensors at the start of a forward: whoever uses them then needs no
    parameter of this module, which matters under ZeRO-3, where a module's parameters are whole only
    while it runs.

    Args:
        embedding: the frozen input embedding ``[V, H]``.
        head: the frozen output head; the same weight as the embedding when they are tied.
        ids: the tokens.

    Attributes:
        weight: ``[J, H]``, input rows; output rows as well when embedding and head are tied.
        head_weight: ``[number of text tokens, H]``, or None when tied.

    Source: IDEFICS' decoupled embedding; torchtune's ``FusionEmbedding``. open_flamingo instead
        masks the gradient of the whole embedding, which ZeRO has divided before a mask could act.
    """

    def __init__(self, embedding: nn.Module, head: nn.Module, ids: TokenIds) -> None:
        super().__init__()
        self.ids = ids
        scale = getattr(embedding, "embed_scale", 1.0)
        self.scale = 1.0 if getattr(scale, "is_meta", False) else float(scale)
        tied = head is None or head.weight is embedding.weight
        self.weight = nn.Parameter(_mean_row(embedding.weight).repeat(len(ids.ordered), 1))
        self.head_weight = (
            None if tied else nn.Parameter(_mean_row(head.weight).repeat(len(ids.text), 1))
        )

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return input rows ``[J, H]`` and output rows of the text tokens."""
        weight = self.weight.clone()
        head = weight[: len(self.ids.text)] if self.head_weight is None else self.head_weight
        return weight * self.scale, head.clone()

    def embed(self, embedded_BTH: Tensor, input_ids: Tensor, rows_JH: Tensor) -> Tensor:
        """Put the rows where their tokens stand."""
        for token_id, row in zip(self.ids.ordered, rows_JH, strict=True):
            here = (input_ids == token_id).unsqueeze(-1)
            embedded_BTH = torch.where(here, row.to(embedded_BTH.dtype), embedded_BTH)
        return embedded_BTH

    def extend_logits(self, logits: Tensor, hidden: Tensor, rows_JH: Tensor) -> Tensor:
        """Give every new token its column: logits of text tokens, minus infinity for media tokens.

        Args:
            logits: ``[..., V]``, of the frozen head; may be overwritten.
            hidden: ``[..., H]``, what the head was given.
            rows_JH: output rows of the text tokens.
        """
        missing = max(self.ids.ordered) + 1 - logits.shape[-1]
        if missing > 0:
            blank = logits.new_full((*logits.shape[:-1], missing), -torch.inf)
            logits = torch.cat([logits, blank], dim=-1)
        # One by one: a list would be sent to the device, and the host would wait for it.
        for token_id in self.ids.media.values():
            logits[..., token_id] = -torch.inf
        new = torch.nn.functional.linear(hidden, rows_JH.to(hidden.dtype)).to(logits.dtype)
        for column, token_id in enumerate(self.ids.text):
            logits[..., token_id] = new[..., column]
        return logits


def _mean_row(weight: nn.Parameter) -> Tensor:
    with whole(weight):
        return weight.detach().float().mean(0, keepdim=True)


@contextmanager
def whole(parameter: nn.Parameter) -> Iterator[None]:
    """Gather a parameter that ZeRO-3 has divided at its construction; otherwise do nothing."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    # Rank 0 tells the others what came of the parameter.
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield
