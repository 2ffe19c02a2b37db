"""How likely the same texts are after each of many prompts: classes of an image, captions of a collection."""

from collections.abc import Sequence

import numpy as np
import torch

from model.padding import pad_right
from pipeline.evaluation.asker import Ask, Asker
from pipeline.prompts import text_ids

# Of a prompt with a text behind it, for each prompt of a batch: what bounds the memory.
TOKENS_TOGETHER = 512


def weigh_choices(
    asker: Asker,
    asks: Sequence[Ask],
    texts: Sequence[str],
    *,
    zero_image: bool = False,
    name: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Summed negative log-likelihoods ``[N, K]``, end marks included, and the texts' tokens ``[K]``.

    Each prompt is computed once, its images too; every rank must call it.

    Raises:
        ConfigError: the language model has no positions for a prompt with a text behind it.
    """
    rows = [text_ids(asker.text, text) + asker.text.end_ids for text in texts]
    tokens = np.array([len(row) for row in rows], np.int64)
    if not rows or not asks:
        return np.zeros((len(asks), len(rows))), tokens
    # A class that is cut short could be another one: nothing is.
    asker.check_room(asks, int(tokens.max()))
    longest = max(asker.length(ask) for ask in asks)
    ids, mask = pad_right(rows, asker.text.pad_id)
    # A number for all batches: every rank is to call the model as often as every other.
    together = max(1, TOKENS_TOGETHER // (longest + ids.shape[1]))
    device = asker.info.device
    parts = [
        (ids[n : n + together].to(device), mask[n : n + together].to(device))
        for n in range(0, len(ids), together)
    ]

    def work(part: Sequence[Ask]) -> list[np.ndarray]:
        prompts = asker.prompts(part, zero_image)
        begun = asker.model.continuations(*prompts.to(device, asker.dtype))
        nats = [begun.losses(*texts).double().sum(-1) for texts in parts]
        return [*torch.cat(nats, dim=1).cpu().numpy()]

    return np.stack(asker.each(asks, work, name)), tokens
