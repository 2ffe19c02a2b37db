"""Random access to the samples of a dataset folder, through the index that `roseate ingest` wrote."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import ConfigError, Problem
from data_prep.schema import INDEX_DTYPE, load_manifest


@dataclass(frozen=True)
class RawSample:
    """One image-text pair as stored: encoded image bytes, caption, and the key to find it again."""

    image: bytes
    text: str
    key: str


class ShardReader:
    """Samples of one dataset folder by number, in the order of its shards; positional reads only.

    Args:
        folder: dataset folder.
        key: configuration key that named the folder, for messages.
        held_out_fraction: share of distinct images set apart by their hash, 0 to 1.
        held_out: whether this reader sees the part set apart, or the rest.

    Raises:
        ConfigError: not a dataset folder, or no sample is left in it.
    """

    def __init__(
        self, folder: str, key: str, *, held_out_fraction: float = 0.0, held_out: bool = False
    ):
        self.folder = Path(folder)
        self.manifest = load_manifest(self.folder, key)
        names = [s.name for s in self.manifest.shards if s.samples]
        self._tars = [self.folder / "shards" / f"{name}.tar" for name in names]
        parts = [np.load(self.folder / "index" / f"{name}.npy", mmap_mode="r") for name in names]
        index = np.concatenate(parts) if parts else np.empty(0, INDEX_DTYPE)
        shard = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
        if held_out_fraction:
            # By hash of the image: duplicates of one picture always fall on the same side.
            apart = index["content_hash"] < np.uint64(held_out_fraction * 2**64)
            index, shard = index[apart == held_out], shard[apart == held_out]
        if not len(index):
            raise ConfigError(
                [Problem(key, str(folder), "holds at least one sample", "see its report.html")]
            )
        self._index, self._shard = index, shard
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._index)

    def read(self, number: int) -> RawSample:
        entry, shard = self._index[number], int(self._shard[number])
        if shard not in self._files:
            self._files[shard] = os.open(self._tars[shard], os.O_RDONLY)
        file, offset = self._files[shard], int(entry["offset"])
        image = os.pread(file, int(entry["image_bytes"]), offset)
        text = os.pread(file, int(entry["text_bytes"]), offset + int(entry["text_offset_delta"]))
        return RawSample(image, text.decode(), f"{self.folder.name}/{int(entry['row']):09d}")
