"""Percentile intervals of scores, by drawing samples anew."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.metrics.score import Score

WEIGHTS_AT_ONCE = 8_000_000  # 64 MB


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its interval; the bounds are NaN where the figure is."""

    value: float
    low: float
    high: float


def interval(
    score: Score,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a score.

    Args:
        score: of N samples.
        groups: N names; samples of one name are drawn together, as questions about one image must
            be, since they are no independent samples. None: every sample by itself.
        resamples: how often N samples (or as many groups as there are) are drawn with replacement.
        level: share of the resamples' figures between the bounds, 0 to 1. The figures that are NaN,
            of resamples without any sample that counts, are left out.
        seed: equal seeds draw equal samples.

    Raises:
        ValueError: the number of groups is not that of samples.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 13.3 and 8.
    """
    drawn = _drawn((score,), groups, resamples, seed)
    return _percentiles(score.value, drawn[0], level)


def paired_interval(
    score: Score,
    other: Score,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `score` minus `other`, both of the same samples in the same order.

    Every resample draws the same samples for both: what makes a sample hard for both cancels out.
    Arguments as for `interval`.

    Raises:
        ValueError: the numbers of samples or groups differ.
    """
    if len(score) != len(other):
        raise ValueError(f"{len(score)} samples cannot be paired with {len(other)}")
    first, second = _drawn((score, other), groups, resamples, seed)
    return _percentiles(score.value - other.value, first - second, level)


def _drawn(
    scores: tuple[Score, ...], groups: Sequence[Hashable] | None, resamples: int, seed: int
) -> np.ndarray:
    """The scores' figures of the resamples, ``[len(scores), resamples]``."""
    count = len(scores[0])
    if groups is not None and len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} samples")
    if not count:
        return np.full((len(scores), resamples), np.nan)
    parts = [
        np.stack([score.of_weights(weights) for score in scores])
        for weights in _weights(count, groups, resamples, seed)
    ]
    return np.concatenate(parts, axis=1)


def _weights(
    count: int, groups: Sequence[Hashable] | None, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """How often each sample is in each resample, ``[some resamples, count]`` at a time."""
    random = np.random.default_rng(seed)
    numbers: dict[Hashable, int] = {}
    member = [numbers.setdefault(name, len(numbers)) for name in groups or range(count)]
    size, at_once = len(numbers), max(1, WEIGHTS_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        picks = random.integers(size, size=(rows, size))
        picks += np.arange(rows)[:, None] * size
        times = np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size)
        yield times[:, member].astype(np.float64)


def _percentiles(value: float, drawn: np.ndarray, level: float) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(drawn):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
