"""A figure that can be computed again for any weighting of its samples, as the bootstrap needs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """A metric of N samples.

    Attributes:
        of_weights: float64 ``[R, N]``, R weightings of the samples (how often each was drawn), to the
            R figures, float64 ``[R]``; all weights 1 give `value`. A figure that a weighting leaves
            without any sample it is about is NaN.
        per_sample: float64 ``[N]``, the figure of each sample by itself, to find the hardest ones;
            NaN where a sample by itself has none.
    """

    of_weights: Callable[[np.ndarray], np.ndarray]
    per_sample: np.ndarray

    @property
    def value(self) -> float:
        """The figure of all samples; NaN where there are none."""
        return float(self.of_weights(np.ones((1, len(self.per_sample))))[0])

    def __len__(self) -> int:
        return len(self.per_sample)


def mean_score(values: np.ndarray) -> Score:
    """The mean over samples.

    Args:
        values: ``[N]``; NaN where the figure is not about a sample, which then does not count.
    """
    values = np.asarray(values, np.float64)
    return ratio_score(np.nan_to_num(values), ~np.isnan(values), values)


def ratio_score(
    numerators: np.ndarray,
    denominators: np.ndarray,
    per_sample: np.ndarray | None = None,
    transform: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio,
) -> Score:
    """A function of the ratio of two sums over samples.

    Args:
        numerators: ``[N]``.
        denominators: ``[N]``, not negative.
        per_sample: ``[N]``; default the same function of each sample's ratio.
        transform: applied to the ratios.
    """
    parts = np.stack([numerators, denominators], axis=1).astype(np.float64)

    def figure(sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return transform(sums[..., 0] / sums[..., 1])

    own = figure(parts) if per_sample is None else np.asarray(per_sample, np.float64)
    return Score(lambda weights: figure(weights @ parts), own)
