"""Random access to the samples of a dataset folder, by shard and slot."""

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from data_prep.bitmap import Bitmap, read_bitmap
from data_prep.errors import ConfigError, Problem
from data_prep.schema import INDEX_DTYPE, canonical_hash, load_manifest
from data_prep.storage import Folder
from data_prep.tar_members import sample_parts
from pipeline.data.remote import RemoteShards

INDEXES_KEPT = 256
FILES_KEPT = 512


@dataclass(frozen=True)
class RawSample:
    """One sample as stored.

    Attributes:
        key: where it came from, "source/key in the tar".
        parts: encoded images (bytes) and texts (str) in reading order; of a pair image, then text.
    """

    key: str
    parts: list[bytes | str]

    @property
    def images(self) -> list[bytes]:
        """The encoded images."""
        return [part for part in self.parts if isinstance(part, bytes)]

    @property
    def text(self) -> str:
        """All texts."""
        return " ".join(part for part in self.parts if isinstance(part, str))


class UnusableSampleError(ValueError):
    """A sample that is stored, but cannot be trained on; names it and says why.

    Attributes:
        counted: whether it counts against the budget. A sample that is whole but has nothing to
            learn does not.
    """

    def __init__(self, key: str, reason: str, *, counted: bool = True) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason, self.counted = key, reason, counted


class Dataset:
    """The kept samples of one dataset folder, local or in an object store.

    Cheap to make whatever its size: of the index only the shards that are read are opened, and only
    while they are in use.

    Args:
        path: dataset folder or URL.
        key: configuration key of the source, for messages.
        bitmaps: selections that a sample must all be in, see `data_prep.bitmap`.
        held_out_fraction: share of distinct images set apart by their hash, 0 to 1.
        held_out: whether to keep the part set apart, or the rest.
        remote: how shards in an object store are read; not needed for a local folder.

    Raises:
        ConfigError: not a dataset folder, a selection that is not there, a tar that has changed, or
            no sample is kept.

    Attributes:
        counts: int64, kept samples of each shard.
        fingerprint: of the dataset and of what is kept of it, 16 hexadecimal digits.
    """

    def __init__(
        self,
        path: str,
        key: str,
        *,
        bitmaps: list[str] | tuple[str, ...] = (),
        held_out_fraction: float = 0.0,
        held_out: bool = False,
        remote: RemoteShards | None = None,
    ) -> None:
        self.folder = Folder(path, f"{key}.path")
        self.manifest = load_manifest(self.folder, f"{key}.path")
        self.name = Path(path.rstrip("/")).name
        self._remote = remote
        self._indexes: dict[int, np.ndarray] = {}
        self._slots: dict[int, np.ndarray] = {}
        self._files: dict[int, int] = {}
        self._bitmap: Bitmap | None = None
        hashes = []
        for name in bitmaps:
            bitmap, digest = read_bitmap(self.folder, self.manifest, name, f"{key}.bitmaps")
            self._bitmap = bitmap if self._bitmap is None else self._bitmap & bitmap
            hashes.append(digest)
        if held_out_fraction:
            apart = self._held_out(held_out_fraction, held_out)
            self._bitmap = apart if self._bitmap is None else self._bitmap & apart
        samples = np.array([s.samples for s in self.manifest.shards], np.int64)
        self.counts = samples if self._bitmap is None else self._bitmap.counts()
        if not self.counts.sum():
            rule = "at least one sample is kept"
            remedy = "see its report.html, or change bitmaps or held_out_fraction"
            raise ConfigError([Problem(f"{key}.path", path, rule, remedy)])
        kept = [self.manifest.fingerprint, hashes, held_out_fraction, held_out]
        self.fingerprint = canonical_hash(kept)[:16]
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def place(self, number: int) -> tuple[int, int]:
        """(shard, slot) of a kept sample, counted through the folder."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._ends[shard] - self.counts[shard])

    def record(self, shard: int, slot: int) -> np.void:
        """The index record of a kept sample, of `INDEX_DTYPE`."""
        return self.index(shard)[self.stored_slot(shard, slot)]

    def stored_slot(self, shard: int, slot: int) -> int:
        """The number that a kept sample has among all samples of its shard, kept or not."""
        return slot if self._bitmap is None else int(self._kept(shard)[slot])

    def stored_slots(self, shard: int) -> np.ndarray:
        """`stored_slot` of every kept sample of a shard, ascending."""
        if self._bitmap is None:
            return np.arange(self.manifest.shards[shard].samples)
        return self._kept(shard)

    def _kept(self, shard: int) -> np.ndarray:
        if shard not in self._slots:
            _make_room(self._slots)
            self._slots[shard] = self._bitmap.kept(shard)
        return self._slots[shard]

    def read(self, number: int) -> RawSample:
        """A kept sample, counted through the folder.

        Raises:
            UnusableSampleError: what is stored is no sample.
        """
        return self.parse(*self.read_spans([self.place(number)]))

    def read_spans(self, places: list[tuple[int, int]]) -> list[tuple[str, bytes]]:
        """The bytes of samples, each with a name to tell it by; as few reads as possible.

        Raises:
            OSError: the storage fails; that is no fault of the samples.
        """
        records = [self.record(*place) for place in places]
        shard_names = (self.manifest.shards[shard].name for shard, _ in places)
        names = [
            f"{self.name}/{shard}/row {int(record['row'])}"
            for shard, record in zip(shard_names, records, strict=True)
        ]
        spans = [
            (p[0], int(r["offset"]), int(r["bytes"])) for p, r in zip(places, records, strict=True)
        ]
        if self.is_remote:
            shards = [(self.manifest.shards[shard], start, size) for shard, start, size in spans]
            data = self._remote.read(self.folder, shards)
        else:
            data = [os.pread(self._file(shard), size, start) for shard, start, size in spans]
        for name, (_, _, size), found in zip(names, spans, data, strict=True):
            if len(found) != size:  # cut between two members it would pass for a smaller sample
                raise OSError(f"{name}: the storage gave {len(found)} of {size} bytes")
        return list(zip(names, data, strict=True))

    def parse(self, span: tuple[str, bytes]) -> RawSample:
        """A sample out of what `read_spans` gave.

        Raises:
            UnusableSampleError: it is no whole sample.
        """
        name, data = span
        try:
            key, parts = sample_parts(data)
        except ValueError as error:
            raise UnusableSampleError(name, str(error)) from None
        return RawSample(f"{self.name}/{key}", parts)

    def prepare(self, shards: np.ndarray) -> None:
        """Bring shards near that will be read soon; does nothing for a local folder."""
        if self.is_remote:
            for shard in np.unique(shards):
                self._remote.prepare(self.folder, self.manifest.shards[shard])

    @property
    def is_remote(self) -> bool:
        """Whether its tars lie in an object store."""
        return not self.folder.is_local or "://" in self.manifest.shards[0].path

    def index(self, shard: int) -> np.ndarray:
        """The index records of all samples of a shard, kept or not."""
        if shard not in self._indexes:
            _make_room(self._indexes)
            name = f"index/{self.manifest.shards[shard].name}.npy"
            if self.folder.is_local:
                index = np.load(self.folder.path / name, mmap_mode="r")
            else:
                index = np.load(BytesIO(self.folder.read(name)))
            if index.dtype != INDEX_DTYPE or len(index) != self.manifest.shards[shard].samples:
                raise OSError(f"{self.folder.url}/{name} is not the index that the manifest names")
            self._indexes[shard] = index
        return self._indexes[shard]

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) >= FILES_KEPT:
                os.close(self._files.pop(next(iter(self._files))))
            path = self.folder.path / self.manifest.shards[shard].path
            file = os.open(path, os.O_RDONLY)
            size, wanted = os.fstat(file).st_size, self.manifest.shards[shard].bytes
            if size != wanted:
                os.close(file)
                raise OSError(
                    f"{path} has {size} bytes, the manifest says {wanted}: the tar was changed after "
                    "it was indexed; bring it back, or run `roseate index --again`"
                )
            self._files[shard] = file
        return self._files[shard]

    def _held_out(self, fraction: float, held_out: bool) -> Bitmap:
        """By hash of the image: duplicates of one picture always fall on the same side."""
        bound = np.uint64(fraction * 2**64)
        kept = []
        for shard in range(len(self.manifest.shards)):
            apart = self.index(shard)["content_hash"] < bound
            kept.append(np.packbits(apart == held_out))
        samples = np.array([s.samples for s in self.manifest.shards], np.int64)
        return Bitmap(np.concatenate(kept) if kept else np.empty(0, np.uint8), samples)

    def __getstate__(self) -> dict:
        """Opened files and indexes stay behind when it goes to a worker process."""
        return self.__dict__ | {"_indexes": {}, "_slots": {}, "_files": {}}


def _make_room(kept: dict) -> None:
    if len(kept) >= INDEXES_KEPT:
        del kept[next(iter(kept))]
