"""Rows that hold several documents, one after another: where each begins, ends, and has its first medium.

Shape legend: B rows, T tokens, M media slots, X documents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def positions_in_documents(documents_BT: Tensor) -> Tensor:
    """Position of each token in its document, long ``[B, T]``; 0 on padding.

    Args:
        documents_BT: long, numbers that change from document to document; -1 for padding.
    """
    index_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = _changes(documents_BT) | (documents_BT < 0)
    return index_T - torch.where(begins_BT, index_T, 0).cummax(1).values


@dataclass(frozen=True)
class Pairs:
    """One medium and the text of each document.

    Attributes:
        row: long ``[X]``.
        last: long ``[X]``, its last token.
        slot: long ``[X]``, slot of its first medium; 0 where it has none.
        whole: bool ``[X]``, whether it has a medium and a target.
    """

    row: Tensor
    last: Tensor
    slot: Tensor
    whole: Tensor


def find_pairs(
    documents_BT: Tensor, is_media_BT: Tensor, targets_BT: Tensor, slots_BM: Tensor
) -> Pairs:
    """Find the pair of every document, row by row.

    Args:
        documents_BT: as in `positions_in_documents`.
        is_media_BT: bool, True at a media token.
        targets_BT: long, -100 where there is none.
        slots_BM: as in `model.media.Media`.
    """
    begins_BT = _changes(documents_BT) & (documents_BT >= 0)
    if documents_BT.is_meta:  # as many operations as rows of one document need
        row = first = torch.zeros_like(slots_BM[:, 0])
    else:
        row, first = begins_BT.nonzero(as_tuple=True)
    member_XT = documents_BT[row] == documents_BT[row, first].unsqueeze(1)
    index_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    last = torch.where(member_XT, index_T, -1).amax(1)
    earlier_BT = is_media_BT.cumsum(1) - is_media_BT.long()
    slot = earlier_BT[row, first].clamp(max=slots_BM.shape[1] - 1)
    has_medium = (member_XT & is_media_BT[row]).any(1) & (slots_BM[row, slot] >= 0)
    has_target = (member_XT & (targets_BT[row] != -100)).any(1)
    return Pairs(row, last, torch.where(has_medium, slot, 0), has_medium & has_target)


def document_mask(documents_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask ``[B, 1, T, T]``: a token sees itself and what stands before it in its document."""
    same_BTT = documents_BT.unsqueeze(2) == documents_BT.unsqueeze(1)
    hidden_BTT = ~same_BTT.tril()
    mask_BTT = torch.zeros_like(hidden_BTT, dtype=dtype).masked_fill(
        hidden_BTT, torch.finfo(dtype).min
    )
    return mask_BTT.unsqueeze(1)


def _changes(documents_BT: Tensor) -> Tensor:
    first_B1 = torch.ones_like(documents_BT[:, :1], dtype=torch.bool)
    return torch.cat([first_B1, documents_BT[:, 1:] != documents_BT[:, :-1]], dim=1)
