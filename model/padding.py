"""Rows of different lengths as one tensor, and the mask that says what is none."""

from functools import partial

import torch
from torch import Tensor, nn


def pad_left(rows: list[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths as ``input_ids`` and ``attention_mask`` for `Flamingo.generate`."""
    return _pad(rows, pad_token_id, "left")


def pad_right(rows: list[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Texts of different lengths as ``input_ids`` and ``attention_mask`` for `Flamingo.forward`."""
    return _pad(rows, pad_token_id, "right")


def _pad(rows: list[list[int]], pad_token_id: int, side: str) -> tuple[Tensor, Tensor]:
    ids = [torch.tensor(row) for row in rows]
    mask = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    return pad(ids, padding_value=pad_token_id), pad(mask, padding_value=False)
