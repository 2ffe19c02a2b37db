"""The global order: position -> (source, epoch, shard, sample), a pure function of the seed.

Nothing here knows of ranks, workers or batches. Memory grows with the number of shards, not of samples.

A source is read in epochs. In an epoch its shards are shuffled and laid end to end, and the line is cut
into lanes of equal length; the samples are dealt from one lane after another, and within a lane in
random order block by block. So a lane reads one or two shards at a time, and whoever reads the same
lanes in every step reads the same shards.
"""

from dataclasses import dataclass, fields

import numpy as np

from pipeline.data.mixing import Mixture, WeightsLog
from pipeline.data.permutation import hash_key, permute
from pipeline.data.recent import Recent

CHUNK, LATELY = 2048, 8


@dataclass(frozen=True)
class Places:
    """Where the samples of some positions are; arrays of one length.

    Attributes:
        position: int64, in the global order.
        source: int64, number of the source.
        rank: int64, samples of the source before this one, over all epochs.
        shard: int64, number of the shard in the source.
        slot: int64, number of the sample among those of the shard that are kept.
        lane: float64 in [0, 1), place of the lane among all lanes of the source.
    """

    position: np.ndarray
    source: np.ndarray
    rank: np.ndarray
    shard: np.ndarray
    slot: np.ndarray
    lane: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def __getitem__(self, index: slice | np.ndarray) -> "Places":
        return Places(*(getattr(self, f.name)[index] for f in fields(self)))


def concatenate(parts: list[Places]) -> Places:
    """One after another."""
    if len(parts) == 1:
        return parts[0]
    return Places(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Places)))


class SourceOrder:
    """The order of one source: rank -> (shard, slot, lane).

    Args:
        seed: of the run.
        name: of the source; the order of a source does not depend on what it is mixed with.
        counts: kept samples of each shard.
        lanes: lanes, at most; there are never more than samples.
        block: samples of a lane that are shuffled among themselves.

    Raises:
        ValueError: there is no sample.
    """

    def __init__(self, seed: int, name: str, counts: np.ndarray, *, lanes: int, block: int) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.size = int(self.counts.sum())
        if self.size < 1:
            raise ValueError(f"source {name} has no sample")
        self.lanes = min(lanes, self.size)
        self.block = block
        self._key = hash_key(seed, name)
        quotient, rest = divmod(self.size, self.lanes)
        # Dealing goes through the lanes by reversed bits, so that any few samples in a row come
        # from lanes spread over all of them.
        reversed_bits = _reverse_bits(np.arange(self.lanes))
        self._lane_of_turn = np.argsort(np.argsort(reversed_bits, kind="stable"), kind="stable")
        self._length = np.full(self.lanes, quotient, np.int64)
        self._length[self._lane_of_turn[:rest]] += 1
        self._start = np.concatenate([[0], np.cumsum(self._length)[:-1]])
        self._epochs = Recent(self._epoch, LATELY)

    def locate(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shard, slot, lane in [0, 1)) of each rank."""
        epochs, index = np.divmod(ranks, self.size)
        index, turn = np.divmod(index, self.lanes)
        lane = self._lane_of_turn[turn]
        block, within = np.divmod(index, self.block)
        block_size = np.minimum(self.block, self._length[lane] - block * self.block)
        key = hash_key(self._key, epochs, lane, block)
        line = self._start[lane] + block * self.block + permute(within, block_size, key)
        shard, slot = np.empty_like(line), np.empty_like(line)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            shuffled, ends = self._epochs(int(epoch))
            place = np.searchsorted(ends, line[here], side="right")
            shard[here] = shuffled[place]
            slot[here] = line[here] - (ends[place] - self.counts[shuffled[place]])
        return shard, slot, lane / self.lanes

    def successor(self, rank: int, attempt: int) -> int:
        """The rank of the sample that stands in for one that cannot be used.

        The `attempt`-th next one of the same lane and epoch; behind the end of a lane stands the next
        lane, and behind the last the first. So the first `size` attempts are all others.
        """
        epoch, index = divmod(rank, self.size)
        along, turn = divmod(index, self.lanes)
        quotient, rest = divmod(self.size, self.lanes)
        line = (turn * quotient + min(turn, rest) + along + attempt) % self.size
        # Back: the first `rest` turns have one sample more than the others.
        turn, along = divmod(line, quotient + 1)
        if turn >= rest:
            turn, along = divmod(line - rest * (quotient + 1), quotient)
            turn += rest
        return epoch * self.size + along * self.lanes + turn

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards in the order of an epoch, and where each of them ends on the line."""
        keys = hash_key(self._key, "shards", epoch, np.arange(len(self.counts)))
        shuffled = np.argsort(keys, kind="stable")
        return shuffled, np.cumsum(self.counts[shuffled])


class Order:
    """An endless order over several sources, mixed by weight, each shuffled anew in every epoch.

    Args:
        seed: of all permutations.
        counts: kept samples of each shard, by name of the source.
        log: weights, see `pipeline.data.mixing.Mixture`.
        lanes: of each source.
        block: samples of a lane that are shuffled among themselves.

    Raises:
        ValueError: a source has no sample, or the log does not fit.
    """

    def __init__(
        self,
        seed: int,
        counts: dict[str, np.ndarray],
        log: WeightsLog,
        *,
        lanes: int = 256,
        block: int = 4096,
    ) -> None:
        self.names = list(counts)
        self.mixture = Mixture(self.names, log)
        self._chunks = Recent(self._chunk, LATELY)
        # The micro-steps of a batch all ask for it.
        self._batches = Recent(self._arranged, LATELY)
        self.sources = [
            SourceOrder(seed, name, count, lanes=lanes, block=block)
            for name, count in counts.items()
        ]

    def locate(self, positions: np.ndarray) -> Places:
        """Where the samples of these positions are; any positions, in any order."""
        positions = np.asarray(positions, np.int64)
        sources, ranks = self.mixture.locate(positions)
        shard, slot = np.empty_like(positions), np.empty_like(positions)
        lane = np.empty(len(positions))
        for number in np.unique(sources):
            here = sources == number
            shard[here], slot[here], lane[here] = self.sources[number].locate(ranks[here])
        return Places(positions, sources, ranks, shard, slot, lane)

    def batch(self, position: int, size: int) -> Places:
        """The samples of a global batch, arranged by lane.

        Dividing the arrangement into equal consecutive parts gives every rank about the same lanes in
        every batch, for any number of ranks.
        """
        return self._batches((position, size))

    def _arranged(self, wanted: tuple[int, int]) -> Places:
        position, size = wanted
        chunks = range(position // CHUNK, (position + size - 1) // CHUNK + 1)
        places = concatenate([self._chunks(number) for number in chunks])
        first = position - chunks[0] * CHUNK
        places = places[first : first + size]
        return places[np.lexsort((places.position, places.lane))]

    def _chunk(self, number: int) -> Places:
        """Places of `CHUNK` positions: arrays that long cost a sample a tenth of what short ones do."""
        return self.locate(np.arange(number * CHUNK, (number + 1) * CHUNK))

    def successor(self, place: Places, attempt: int) -> Places:
        """The place that stands in for one (of length 1) whose sample cannot be used."""
        source = self.sources[int(place.source[0])]
        rank = np.array([source.successor(int(place.rank[0]), attempt)])
        shard, slot, lane = source.locate(rank)
        return Places(place.position, place.source, rank, shard, slot, lane)

    def epoch(self, place: Places) -> np.ndarray:
        """Epoch of the source that each place belongs to."""
        sizes = np.array([source.size for source in self.sources])
        return place.rank // sizes[place.source]


def _reverse_bits(values: np.ndarray) -> np.ndarray:
    """Bits of small non-negative integers in reverse; van der Corput's sequence, scaled."""
    result, values = np.zeros_like(values), values.copy()
    for _ in range(32):
        result = (result << 1) | (values & 1)
        values >>= 1
    return result
