"""Examples before a query: drawn at random, or those whose images are most like the query's."""

import hashlib
from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.layouts.record import Record


def draw_random(query: Record, pool: Sequence[Record], count: int, seed: int = 0) -> list[int]:
    """Numbers of `count` examples of the pool, none of them of the query's image.

    Each query draws its own, by a hash of both keys and the seed; the examples of fewer shots are among
    those of more.
    """
    free = [n for n, record in enumerate(pool) if record.image_key != query.image_key]

    def order(number: int) -> bytes:
        text = f"{seed} {query.key} {pool[number].key}".encode("utf-8", "replace")
        return hashlib.sha256(text).digest()

    return sorted(free, key=order)[:count]


def nearest(
    query: Record, own: np.ndarray, pool: Sequence[Record], others: np.ndarray, count: int
) -> list[int]:
    """RICES: numbers of the `count` examples whose images are most like the query's, the most like last.

    Args:
        query: whose image is left out of the pool.
        own: unit vector ``[D]`` of its image.
        pool: examples.
        others: unit vectors ``[P, D]`` of their images.
        count: of examples.

    Source: Yang et al. (arXiv:2109.05014) section 3; Flamingo (arXiv:2204.14198) section 3.3, which too
        puts the most similar right before the query.
    """
    likeness = others @ own
    free = [n for n, record in enumerate(pool) if record.image_key != query.image_key]
    best = sorted(free, key=lambda n: (-likeness[n], n))[:count]
    return best[::-1]
