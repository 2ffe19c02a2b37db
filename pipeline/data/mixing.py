"""Which source a position belongs to: every source keeps to its share in every prefix, within one sample."""

from fractions import Fraction
from math import gcd

import numpy as np

# Longest cycle of the mixture. Weights that fit no shorter one are rounded to 1 / LONGEST.
LONGEST = 2**16
WeightsLog = list[tuple[int, dict[str, float]]]


class Mixture:
    """Positions to sources, under weights that may have changed on the way.

    Args:
        names: of all sources that occur.
        log: ``(position, weights by name)``, ascending from position 0; from each position on its
            weights hold. A source without a weight, or with 0, is not drawn.

    Raises:
        ValueError: the log does not begin at 0, or names another source.
    """

    def __init__(self, names: list[str], log: WeightsLog) -> None:
        if not log or log[0][0] != 0:
            raise ValueError("the log of weights begins at position 0")
        unknown = {name for _, weights in log for name in weights} - set(names)
        if unknown:
            raise ValueError(
                f"weights for sources that are not there: {', '.join(sorted(unknown))}"
            )
        self.names = names
        self._starts = np.array([position for position, _ in log], np.int64)
        self._cycles = [_Cycle([weights.get(name, 0.0) for name in names]) for _, weights in log]
        # Samples that each source had given when the segment began.
        self._before = [np.zeros(len(names), np.int64)]
        for segment in range(1, len(log)):
            length = int(self._starts[segment] - self._starts[segment - 1])
            drawn = self._cycles[segment - 1].drawn(length)
            self._before.append(self._before[-1] + drawn)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the source, samples that it has given before), int64 each."""
        sources, ranks = np.empty_like(positions), np.empty_like(positions)
        segments = np.searchsorted(self._starts, positions, side="right") - 1
        for segment in np.unique(segments):
            here = segments == segment
            own, earlier = self._cycles[segment].locate(positions[here] - self._starts[segment])
            sources[here], ranks[here] = own, earlier + self._before[segment][own]
        return sources, ranks

    def counts(self, position: int) -> np.ndarray:
        """Samples of each source before a position."""
        segment = int(np.searchsorted(self._starts, position, side="right")) - 1
        length = position - int(self._starts[segment])
        return self._before[segment] + self._cycles[segment].drawn(length)


class _Cycle:
    """One period of the mixture, repeated for ever."""

    def __init__(self, weights: list[float]) -> None:
        self.per_cycle = np.array(whole_shares(weights), np.int64)
        self.pattern, self.earlier = _schedule(self.per_cycle.tolist())

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cycle, slot = np.divmod(positions, len(self.pattern))
        source = self.pattern[slot]
        return source, cycle * self.per_cycle[source] + self.earlier[slot]

    def drawn(self, length: int) -> np.ndarray:
        cycles, rest = divmod(length, len(self.pattern))
        partial = np.bincount(self.pattern[:rest], minlength=len(self.per_cycle))
        return cycles * self.per_cycle + partial


def whole_shares(weights: list[float]) -> list[int]:
    """The smallest whole numbers in the ratio of the weights, read as decimals.

    If they would add up to more than `LONGEST`, the nearest ones that add up to it; a source with a
    weight above 0 is never rounded away.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    common = 1
    for fraction in exact:
        common = common * fraction.denominator // gcd(common, fraction.denominator)
    shares = [int(fraction * common) for fraction in exact]
    divisor = gcd(*shares)
    shares = [share // divisor for share in shares]
    total = sum(shares)
    if total <= LONGEST:
        return shares
    ideal = [share * LONGEST / total for share in shares]
    rounded = [max(1, int(i)) if share else 0 for i, share in zip(ideal, shares, strict=True)]
    while (missing := LONGEST - sum(rounded)) != 0:
        step = 1 if missing > 0 else -1
        # Never below 1: taking away goes to the source that has most too many.
        open_ = [s for s in range(len(shares)) if shares[s] and rounded[s] + step >= 1]
        rounded[max(open_, key=lambda s: step * (ideal[s] - rounded[s]))] += step
    return rounded


def _schedule(shares: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Source of every slot of a cycle, and how often it was drawn earlier in the cycle.

    Earliest deadline first among the sources whose share of the prefix is not yet full: no prefix
    deviates from any share by a whole sample. Source: Tijdeman, The chairman assignment problem
    (1980); Baruah et al., Proportionate progress (1996).
    """
    total = sum(shares)
    drawn = [0] * len(shares)
    pattern, earlier = np.empty(total, np.int64), np.empty(total, np.int64)
    active = [source for source, share in enumerate(shares) if share]
    for slot in range(total):
        best, best_deadline = -1, 0.0
        for source in active:
            if drawn[source] * total < shares[source] * (slot + 1):
                deadline = (drawn[source] + 1) / shares[source]
                if best < 0 or deadline < best_deadline:
                    best, best_deadline = source, deadline
        pattern[slot], earlier[slot] = best, drawn[best]
        drawn[best] += 1
    return pattern, earlier
