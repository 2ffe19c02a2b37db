"""The global order: position -> (source, sample), a pure function of the seed.

Nothing here knows of ranks, workers or batches: any number of them asks for the same positions and gets the
same samples. O(1) memory: no permutation is stored.
"""

import numpy as np

_ROUNDS = 4
_CYCLE = 1000


class Order:
    """An endless order over several sources, mixed by weight, each source shuffled anew in every epoch.

    Args:
        seed: of all permutations.
        sizes: samples per source.
        weights: relative share of each source in every prefix of the order.
    """

    def __init__(self, seed: int, sizes: list[int], weights: list[float]):
        if len(sizes) != len(weights) or not sizes or min(sizes) < 1:
            raise ValueError(f"needs one positive size per weight, got {sizes} and {weights}")
        self.seed = seed
        self.sizes = list(sizes)
        self._pattern, self._ranks, self._per_cycle = _mixing_cycle(weights)

    def locate(self, position: int) -> tuple[int, int]:
        """(source, sample index in that source) at a position of the global order."""
        source, rank = self._source(position)
        epoch, index = divmod(rank, self.sizes[source])
        return source, permute(index, self.sizes[source], (self.seed, source, epoch))

    def _source(self, position: int) -> tuple[int, int]:
        """The source at `position`, and how often it was drawn before."""
        cycle, slot = divmod(position, _CYCLE)
        source = int(self._pattern[slot])
        return source, cycle * int(self._per_cycle[source]) + int(self._ranks[slot])


def _mixing_cycle(weights: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One cycle of the mixture: source per slot, earlier draws of it in the cycle, draws per source.

    Every prefix holds each source's share to within one sample (earliest deadline first); shares are
    rounded to 1 / _CYCLE, and a source is never rounded away.
    """
    share = np.asarray(weights, np.float64) / sum(weights)
    per_cycle = np.maximum(1, np.floor(share * _CYCLE)).astype(np.int64)
    while per_cycle.sum() != _CYCLE:
        step = 1 if per_cycle.sum() < _CYCLE else -1
        per_cycle[np.argmax(step * (share * _CYCLE - per_cycle))] += step
    drawn = np.zeros(len(weights), np.int64)
    pattern, ranks = np.empty(_CYCLE, np.int64), np.empty(_CYCLE, np.int64)
    for slot in range(_CYCLE):
        open_sources = np.flatnonzero(drawn * _CYCLE < per_cycle * (slot + 1))
        deadline = (drawn[open_sources] + 1) / per_cycle[open_sources]
        source = int(open_sources[np.argmin(deadline)])
        pattern[slot], ranks[slot] = source, drawn[source]
        drawn[source] += 1
    return pattern, ranks, per_cycle


def permute(index: int, size: int, key: tuple[int, ...]) -> int:
    """A bijection of range(size) chosen by `key`: a Feistel network, walked until inside the range.

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002), cycle walking.
    """
    half = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    while True:
        left, right = index >> half, index & mask
        for k in keys:
            mixed = (right * 0x9E3779B97F4A7C15 + int(k)) & 0xFFFFFFFFFFFFFFFF
            mixed ^= mixed >> 29
            mixed = (mixed * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 32) & mask)
        index = (left << half) | right
        if index < size:
            return index
