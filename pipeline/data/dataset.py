"""Random access to the samples of a dataset folder, by shard and slot."""

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from data_prep.bitmap import Bitmap, read_bitmaps
from data_prep.errors import ConfigError, Problem
from data_prep.schema import canonical_hash, load_manifest, open_index
from data_prep.storage import Folder, write_file
from data_prep.tar_members import Prompt, sample_parts
from pipeline.data.recent import Recent, files_at_once
from pipeline.data.remote import RemoteShards, locked

SLOTS_KEPT = 512
SAMPLES_IN_MEMORY = 1_000_000


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
        """All texts, prompts left out."""
        texts = (p for p in self.parts if isinstance(p, str) and not isinstance(p, Prompt))
        return " ".join(texts)


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
    while they are in use. Only for `held_out_fraction` all of it is read, once on a node.

    Args:
        path: dataset folder or URL.
        key: configuration key of the source, for messages.
        name: of the source, default that of the folder; begins the keys of its samples.
        bitmaps: selections that a sample must all be in, see `data_prep.bitmap`.
        held_out_fraction: share of distinct images set apart by their hash, 0 to 1.
        held_out: whether to keep the part set apart, or the rest.
        remote: how shards in an object store are read, and where the node keeps files; not needed for
            a local folder.

    Raises:
        ConfigError: not a dataset folder, a selection that is not there, or no sample is kept.

    Attributes:
        counts: int64, kept samples of each shard.
        fingerprint: of the dataset and of what is kept of it, 16 hexadecimal digits.
    """

    def __init__(
        self,
        path: str,
        key: str,
        *,
        name: str | None = None,
        bitmaps: list[str] | tuple[str, ...] = (),
        held_out_fraction: float = 0.0,
        held_out: bool = False,
        remote: RemoteShards | None = None,
    ) -> None:
        self.folder = Folder(path, f"{key}.path")
        self.manifest = load_manifest(self.folder, f"{key}.path")
        self.name = name or Path(path.rstrip("/")).name
        self._remote = remote
        files = files_at_once()
        self.index = Recent(self._open_index, files)
        self._kept = Recent(self._kept_slots, SLOTS_KEPT)
        self._file = Recent(self._open_tar, files, os.close)
        self._bitmap, hashes = read_bitmaps(self.folder, self.manifest, bitmaps, f"{key}.bitmaps")
        if held_out_fraction:
            apart = self._apart(held_out_fraction)
            apart = apart if held_out else ~apart
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

    def _kept_slots(self, shard: int) -> np.ndarray:
        return self._bitmap.kept(shard)

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

    def stop(self) -> None:
        """Bring nothing near any more."""
        if self.is_remote:
            self._remote.stop()

    @property
    def is_remote(self) -> bool:
        """Whether its tars lie in an object store."""
        return not self.folder.is_local or "://" in self.manifest.shards[0].path

    def _open_index(self, shard: int) -> np.ndarray:
        """The index records of all samples of a shard, kept or not."""
        return open_index(self.folder, self.manifest.shards[shard])

    def _open_tar(self, shard: int) -> int:
        path = self.folder.path / self.manifest.shards[shard].path
        file = os.open(path, os.O_RDONLY)
        size, wanted = os.fstat(file).st_size, self.manifest.shards[shard].bytes
        if size != wanted:
            os.close(file)
            raise OSError(
                f"{path} has {size} bytes, the manifest says {wanted}: the tar was changed after it "
                "was indexed; bring it back, or run `roseate index --again`"
            )
        return file

    def _apart(self, fraction: float) -> Bitmap:
        """By hash of the image: duplicates of one picture always fall on the same side.

        Of a large dataset this reads gigabytes of index: once on a node, then from a file.
        """
        samples = np.array([s.samples for s in self.manifest.shards], np.int64)
        if self._remote is None or samples.sum() < SAMPLES_IN_MEMORY:
            return Bitmap(self._bits_apart(fraction), samples)
        folder = self._remote.cache / "held_out"
        path = folder / f"{self.manifest.fingerprint[:32]}_{fraction:.9g}.npy"
        folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                data = BytesIO()
                np.save(data, self._bits_apart(fraction))
                write_file(path, data.getvalue())
        return Bitmap(np.load(path, mmap_mode="r"), samples)

    def _bits_apart(self, fraction: float) -> np.ndarray:
        bound = np.uint64(fraction * 2**64)
        bits = [
            np.packbits(self._open_index(shard)["content_hash"] < bound)
            for shard in range(len(self.manifest.shards))
        ]
        return np.concatenate(bits) if bits else np.empty(0, np.uint8)
