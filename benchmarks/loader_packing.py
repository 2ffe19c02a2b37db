"""How much of a micro-batch is padding, with captions as long as those of CC12M."""

import numpy as np

from benchmarks.figures import Figure, Pairs
from benchmarks.loader_data import caption_lengths
from pipeline.data.batch import Sample, collate
from pipeline.data.text import Encoded

MICRO_SAMPLES, PACK_TOKENS, MAX_TEXT_TOKENS = 64, 256, 64
MICRO_BATCHES, GROUPS, LIMIT = 200, 10, 0.03


def padding_share(lengths: np.ndarray, pack_tokens: int | None) -> float:
    """Share of padding in micro-batches (a row of lengths each), as the product lays them out."""
    tokens = places = 0
    for texts in lengths.tolist():
        samples = [Sample("", "", Encoded([1] * n, [1] * n, 0), []) for n in texts]
        mask = collate(samples, None, pad_id=0, pack_tokens=pack_tokens).attention_mask
        tokens, places = tokens + int(mask.sum()), places + mask.numel()
    return 1 - tokens / places


def packing_figures() -> list[Figure]:
    """Packed rows against the limit, and against one text a row."""
    lengths = np.minimum(caption_lengths(MICRO_SAMPLES * MICRO_BATCHES), MAX_TEXT_TOKENS)
    groups = lengths.reshape(GROUPS, -1, MICRO_SAMPLES)
    packed = [padding_share(group, PACK_TOKENS) for group in groups]
    padded = [padding_share(group, None) for group in groups]
    name = f"padding, {MICRO_SAMPLES} captions in rows of {PACK_TOKENS}"
    return [
        Pairs(packed, [LIMIT] * GROUPS).figure(f"{name} / limit", "share", 1.0),
        Pairs(packed, padded).figure(f"{name} / one a row", "share"),
    ]
