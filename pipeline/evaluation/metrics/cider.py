"""CIDEr-D of captions, without Java."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.metrics.bleu import ORDERS, check_references, ngrams
from pipeline.evaluation.metrics.score import Score, mean_score

SIGMA = 6.0


@dataclass(frozen=True)
class DocumentFrequency:
    """How common n-grams are.

    Attributes:
        images: how many images the references are of.
        containing: of how many of them at least one reference has the n-gram.
    """

    images: int
    containing: Counter[tuple[str, ...]]

    @classmethod
    def of(cls, references: Sequence[list[list[str]]]) -> "DocumentFrequency":
        """Counted over images, of each its references' tokens."""
        containing: Counter[tuple[str, ...]] = Counter()
        for texts in references:
            containing.update({ngram for tokens in texts for ngram in ngrams(tokens)})
        return cls(len(references), containing)


def cider_d(
    candidates: Sequence[list[str]],
    references: Sequence[list[list[str]]],
    frequency: DocumentFrequency | None = None,
) -> Score:
    """Mean over captions of the likeness of their rare n-grams to those of the references, times 10.

    Args:
        candidates: tokens of each of N captions.
        references: of each its references' tokens, at least one.
        frequency: of n-grams; None: counted over these references, as the field does, so that a
            subset has other figures than the whole set. Resampling never counts them anew.

    Raises:
        ValueError: the numbers of captions differ, or one has no reference.

    Source: Vedantam et al., CIDEr (arXiv:1411.5726) section 5, as pycocoevalcap's ``Cider`` counts,
    also where it leaves the paper: the penalty compares numbers of bigrams, not of tokens.
    """
    check_references(candidates, references)
    frequency = DocumentFrequency.of(references) if frequency is None else frequency
    weigher = _Weigher(frequency)
    values = []
    for candidate, texts in zip(candidates, references, strict=True):
        own = weigher.vector(candidate)
        values.append(sum(_likeness(own, weigher.vector(t)) for t in texts) / len(texts))
    return mean_score(10.0 * np.array(values, np.float64))


@dataclass(frozen=True)
class _Vector:
    """TF-IDF weights of a text's n-grams by order, their norms, and the number of its bigrams."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    bigrams: int


class _Weigher:
    def __init__(self, frequency: DocumentFrequency) -> None:
        self.log_images = np.log(float(frequency.images)) if frequency.images else 0.0
        self.idf = {
            ngram: float(self.log_images - np.log(count))
            for ngram, count in frequency.containing.items()
        }

    def vector(self, tokens: list[str]) -> _Vector:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
        for ngram, count in ngrams(tokens).items():
            weights[len(ngram) - 1][ngram] = count * self.idf.get(ngram, self.log_images)
        norms = [sum(w * w for w in part.values()) ** 0.5 for part in weights]
        return _Vector(weights, norms, max(0, len(tokens) - 1))


def _likeness(own: _Vector, other: _Vector) -> float:
    """Clipped cosine, averaged over the orders, times the penalty of unequal lengths."""
    total = 0.0
    for mine, theirs, norm, other_norm in zip(
        own.weights, other.weights, own.norms, other.norms, strict=True
    ):
        if norm and other_norm:
            shared = mine.keys() & theirs.keys()
            dot = sum(min(mine[g], theirs[g]) * theirs[g] for g in shared)
            total += dot / (norm * other_norm)
    penalty = np.exp(-((own.bigrams - other.bigrams) ** 2) / (2 * SIGMA**2))
    return float(total * penalty / ORDERS)
