"""BLEU-1 to BLEU-4 of captions with several references each."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.metrics.score import Score

ORDERS = 4
# As the field's scorer has them: no division by zero, and no logarithm of it.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(candidates: Sequence[list[str]], references: Sequence[list[list[str]]]) -> list[Score]:
    """BLEU-1, -2, -3, -4 of a corpus: n-gram counts are summed over all samples before the ratio.

    Args:
        candidates: tokens of each of N captions.
        references: of each its references' tokens, at least one.

    Returns:
        One score an order. The value of a sample by itself is its own BLEU, unsmoothed.

    Raises:
        ValueError: the numbers of captions differ, or one has no reference.

    Source: Papineni et al., BLEU (2002), with the closest reference's length, the shorter of two as
    close; numbers as pycocoevalcap's ``Bleu(4)``, which has no smoothing.
    """
    check_references(candidates, references)
    counts = np.array(
        [_counts(c, r) for c, r in zip(candidates, references, strict=True)], np.float64
    ).reshape(-1, 2 + 2 * ORDERS)
    own = _figures(counts)
    return [
        Score(lambda weights, n=n: _figures(weights @ counts)[..., n], own[:, n])
        for n in range(ORDERS)
    ]


def check_references(
    candidates: Sequence[list[str]], references: Sequence[list[list[str]]]
) -> None:
    """Raises ValueError unless there are references for every candidate."""
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions for {len(references)} lists of references")
    without = sum(not r for r in references)
    if without:
        raise ValueError(f"{without} captions have no reference")


def ngrams(tokens: list[str]) -> Counter[tuple[str, ...]]:
    """How often each n-gram of 1 to 4 tokens is there."""
    return Counter(
        tuple(tokens[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(tokens) - n + 1)
    )


def _counts(candidate: list[str], references: list[list[str]]) -> list[int]:
    """Tokens, tokens of the closest reference, n-grams of each order, and how many of them match."""
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= ngrams(reference)
    matches = [0] * ORDERS
    for ngram, count in (ngrams(candidate) & most).items():
        matches[len(ngram) - 1] += count
    length = len(candidate)
    closest = min((abs(len(r) - length), len(r)) for r in references)[1]
    return [length, closest, *(max(0, length - n) for n in range(ORDERS)), *matches]


def _figures(counts: np.ndarray) -> np.ndarray:
    """``[..., 10]`` counts of `_counts`, summed or not, to ``[..., 4]`` figures."""
    length, reference, total, matches = np.split(counts, [1, 2, 2 + ORDERS], axis=-1)
    precision = np.cumprod((matches + _TINY) / (total + _SMALL), axis=-1)
    ratio = (length + _TINY) / (reference + _SMALL)
    with np.errstate(over="ignore"):
        brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    return precision ** (1 / np.arange(1, ORDERS + 1)) * brevity
