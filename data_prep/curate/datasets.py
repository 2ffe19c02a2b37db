"""The datasets that are looked at together, and their samples numbered through all of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from data_prep.bitmap import Bitmap, read_bitmaps
from data_prep.curate.facts import FactsOf, open_tar
from data_prep.curate.looks import SIDE
from data_prep.errors import ConfigError, Problem
from data_prep.schema import load_manifest, open_index
from data_prep.storage import Folder
from data_prep.tar_members import sample_parts

OPEN_FILES = 200


@dataclass(frozen=True)
class Source:
    """A dataset folder to choose from, or one to stay apart from.

    Attributes:
        name: of the source.
        key: configuration key of its folder.
        url: of its folder.
        bitmaps: selections that its samples must be in besides.
        is_apart: whether it is only to stay apart from.
    """

    name: str
    key: str
    url: str
    bitmaps: tuple[str, ...] = ()
    is_apart: bool = False


class Samples:
    """All samples of some datasets, those to stay apart from first.

    Args:
        sources: the datasets.
        folder: where facts are kept.
        columns: further facts.

    Raises:
        ConfigError: with the problems of all folders and selections.
    """

    def __init__(self, sources: list[Source], folder: Path, columns: tuple[str, ...]) -> None:
        self.sources = sorted(sources, key=lambda source: not source.is_apart)
        self.facts: list[FactsOf] = []
        self.selected: list[Bitmap | None] = []
        problems = _folders_named_twice(self.sources)
        for source in self.sources:
            try:
                self._open(source, folder, columns)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        self._miniatures = lru_cache(OPEN_FILES)(
            lambda number, shard: self.facts[number].open_miniatures(shard)
        )

    def _open(self, source: Source, folder: Path, columns: tuple[str, ...]) -> None:
        place = Folder(source.url, source.key)
        manifest = load_manifest(place, source.key)
        selected, _ = read_bitmaps(place, manifest, source.bitmaps, f"{source.key}.bitmaps")
        self.selected.append(selected)
        # What is only to stay apart from is held against no rule.
        wanted = () if source.is_apart else columns
        facts = folder / "facts" / manifest.fingerprint[:32]
        self.facts.append(FactsOf(source.url, manifest, facts, wanted))

    @cached_property
    def _starts(self) -> np.ndarray:
        """Number of the first sample of every shard, and behind the last."""
        sizes = [shard.samples for facts in self.facts for shard in facts.manifest.shards]
        return np.cumsum([0, *sizes])

    @cached_property
    def _shards(self) -> list[tuple[int, int]]:
        """(dataset, shard) of every shard."""
        return [(n, s) for n, f in enumerate(self.facts) for s in range(len(f.manifest.shards))]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(dataset, shard) in order."""
        return iter(self._shards)

    @cached_property
    def num_apart(self) -> int:
        """How many samples are only to stay apart from."""
        numbers = [n for n, source in enumerate(self.sources) if source.is_apart]
        return sum(self.facts[n].manifest.samples for n in numbers)

    def to_choose_from(self) -> Iterator[tuple[int, Source]]:
        """The datasets that are not only to stay apart from, by number."""
        return ((n, source) for n, source in enumerate(self.sources) if not source.is_apart)

    def span(self, dataset: int) -> slice:
        """The numbers of the samples of a dataset."""
        sizes = [facts.manifest.samples for facts in self.facts]
        start = sum(sizes[:dataset])
        return slice(start, start + sizes[dataset])

    def shard_spans(self, dataset: int) -> Iterator[slice]:
        """The numbers of the samples of each shard of a dataset."""
        for place, (number, _) in enumerate(self._shards):
            if number == dataset:
                yield slice(int(self._starts[place]), int(self._starts[place + 1]))

    def field(self, name: str) -> np.ndarray:
        """A fact of all samples."""
        return self._gather(lambda number, shard: self.facts[number].open(shard)[name])

    def column(self, name: str) -> np.ndarray:
        """A column of all samples, NaN for those only to stay apart from."""

        def read(number: int, shard: int) -> np.ndarray | float:
            is_apart = self.sources[number].is_apart
            return np.nan if is_apart else self.facts[number].column(shard, name)

        return self._gather(read, np.float64)

    def index_field(self, name: str) -> np.ndarray:
        """A field of the index of all samples.

        Raises:
            OSError: an index cannot be read.
        """
        return self._gather(lambda number, shard: self._index(number, shard)[name])

    def _gather(self, read: Callable, dtype: type | None = None) -> np.ndarray:
        """What `read(dataset, shard)` gives, copied: no shard's file stays open."""
        found = None
        for place, shard in enumerate(self._shards):
            part = read(*shard)
            if found is None:
                found = np.empty(len(self), dtype or part.dtype)
            found[self._starts[place] : self._starts[place + 1]] = part
        return np.empty(0) if found is None else found

    def miniatures(self, numbers: np.ndarray) -> np.ndarray:
        """uint8 [n, SIDE, SIDE, 3] of some samples."""
        found = np.empty((len(numbers), SIDE, SIDE, 3), np.uint8)
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        order = np.argsort(places, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(places[order])) + 1):
            if len(mine):
                place = int(places[mine[0]])
                slots = numbers[mine] - self._starts[place]
                found[mine] = self._miniatures(*self._shards[place])[slots]
        return found

    def read(self, number: int) -> tuple[str, list[bytes | str]]:
        """Where a sample is, for people, and its images and texts.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        dataset, shard = self._shards[place]
        facts = self.facts[dataset]
        record = self._index(dataset, shard)[number - self._starts[place]]
        folder, entry = Folder(facts.url, "data.sources"), facts.manifest.shards[shard]
        with open_tar(folder, entry, at_random=True) as tar:
            tar.seek(int(record["offset"]))
            key, parts = sample_parts(tar.read(int(record["bytes"])))
        return f"{self.sources[dataset].name}/{key}", parts

    def _index(self, dataset: int, shard: int) -> np.ndarray:
        facts = self.facts[dataset]
        return open_index(Folder(facts.url, "data.sources"), facts.manifest.shards[shard])


def _folders_named_twice(sources: list[Source]) -> list[Problem]:
    first: dict[str, Source] = {}
    problems = []
    for source in (source for source in sources if not source.is_apart):
        other = first.setdefault(str(source.url).rstrip("/"), source)
        if other is not source:
            rule = f"is another folder than that of {other.key}: a selection is one for its folder"
            remedy = "name the folder once, or curate one after the other with a curate.name each"
            problems.append(Problem(source.key, source.url, rule, remedy))
    return problems
