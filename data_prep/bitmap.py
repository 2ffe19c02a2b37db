"""Selections of samples: one bit for each, over the index of a dataset folder; no shard is rewritten.

    <folder>/bitmaps/NAME.npy    uint8: the bits of every shard in the order of the manifest, first sample
                                 in the highest bit, each shard beginning with a byte of its own
    <folder>/bitmaps/NAME.json   fingerprint of the dataset it belongs to, samples kept, who made it

One bit a sample: 50 MB for 400 million.
"""

import hashlib
import json
from collections.abc import Iterable
from io import BytesIO

import numpy as np

from data_prep.errors import ConfigError, Problem
from data_prep.schema import Manifest
from data_prep.storage import Folder

SHARDS_AT_ONCE = 256


class Bitmap:
    """Which samples of a dataset are kept.

    Args:
        bits: uint8, as in the file; may be memory-mapped.
        samples: samples of each shard.
    """

    def __init__(self, bits: np.ndarray, samples: np.ndarray) -> None:
        self.bits = bits
        self.samples = samples
        self._starts = np.concatenate([[0], np.cumsum((samples + 7) // 8)])

    def counts(self) -> np.ndarray:
        """Samples kept in each shard, int64."""
        counts = np.zeros(len(self.samples), np.int64)
        filled = np.flatnonzero(self.samples)  # reduceat would count a neighbour for empty shards
        # Some shards at a time: numpy turns every byte that it sums into eight.
        for some in np.array_split(filled, len(filled) // SHARDS_AT_ONCE + 1):
            if len(some):
                first, end = self._starts[some[0]], self._starts[some[-1] + 1]
                ones = np.bitwise_count(self.bits[first:end])
                starts = self._starts[some] - first
                counts[some] = np.add.reduceat(ones, starts, dtype=np.int64)
        return counts

    def kept(self, shard: int) -> np.ndarray:
        """Numbers of the samples kept in a shard, ascending."""
        part = self.bits[self._starts[shard] : self._starts[shard + 1]]
        return np.flatnonzero(np.unpackbits(part, count=int(self.samples[shard])))

    def __invert__(self) -> "Bitmap":
        """Samples that this one does not keep."""
        bits = ~self.bits
        last, padding = self._padding()
        bits[last] &= ~padding
        return Bitmap(bits, self.samples)

    def _padding(self) -> tuple[np.ndarray, np.ndarray]:
        """Last bytes of shards that do not fill them, and the bits of each that belong to no sample."""
        rest = self.samples % 8
        partial = np.flatnonzero(rest)
        padding = (1 << (8 - rest[partial])) - 1
        return self._starts[partial + 1] - 1, padding.astype(np.uint8)

    def is_clean(self) -> bool:
        """Whether the bits that belong to no sample are 0, as all counting takes for granted."""
        last, padding = self._padding()
        return not (self.bits[last] & padding).any()

    def __and__(self, other: "Bitmap") -> "Bitmap":
        """Samples that both keep."""
        return Bitmap(self.bits & other.bits, self.samples)


def write_bitmap(
    folder: Folder, manifest: Manifest, name: str, kept: Iterable[np.ndarray], made_by: str
) -> None:
    """Write a selection; it is there under its name only when it is whole.

    Args:
        folder: the dataset folder, on a disk or in a store.
        manifest: of the dataset.
        name: of the selection.
        kept: bool array of every shard, in the order of the manifest.
        made_by: what decided, for people.

    Raises:
        ValueError: an array does not have as many values as its shard has samples.
        OSError: it cannot be written.
    """
    parts, count = [], 0
    for shard, keep in zip(manifest.shards, kept, strict=True):
        if len(keep) != shard.samples:
            raise ValueError(f"shard {shard.name} has {shard.samples} samples, not {len(keep)}")
        parts.append(np.packbits(keep))
        count += int(keep.sum())
    bits = np.concatenate(parts) if parts else np.empty(0, np.uint8)
    note = {"dataset": manifest.fingerprint, "kept": count, "made_by": made_by}
    note["bits"] = hashlib.sha256(bits).hexdigest()
    # Without its note there is no selection: an older one of that name ends here.
    folder.remove(f"bitmaps/{name}.json")
    data = BytesIO()
    np.save(data, bits)
    folder.write(f"bitmaps/{name}.npy", data.getvalue())
    folder.write(f"bitmaps/{name}.json", json.dumps(note).encode())


def read_bitmaps(
    folder: Folder, manifest: Manifest, names: Iterable[str], key: str
) -> tuple[Bitmap | None, list[str]]:
    """What all of some selections keep, None without any, and the hash of each; see `read_bitmap`."""
    together, hashes = None, []
    for name in names:
        bitmap, digest = read_bitmap(folder, manifest, name, key)
        together = bitmap if together is None else together & bitmap
        hashes.append(digest)
    return together, hashes


def read_bitmap(folder: Folder, manifest: Manifest, name: str, key: str) -> tuple[Bitmap, str]:
    """A selection, memory-mapped where the folder is local, and the hash of its bits.

    Raises:
        ConfigError: there is no such selection, or it belongs to another state of the dataset.
    """
    file, note_file = f"bitmaps/{name}.npy", f"bitmaps/{name}.json"
    try:
        note = json.loads(folder.read(note_file))
        if folder.is_local:
            bits = np.load(folder.path / file, mmap_mode="r")
        else:
            bits = np.load(BytesIO(folder.read(file)))
        belongs, digest = note["dataset"] == manifest.fingerprint, note["bits"]
        if bits.dtype != np.uint8 or bits.ndim != 1:
            raise ValueError(f"{bits.ndim}-dimensional {bits.dtype} instead of bytes")
    except FileNotFoundError:
        notes = Folder(f"{folder.url}/bitmaps", key).names(".json")
        there = [note.removesuffix(".json") for note in notes]
        remedy = "make one by `roseate curate`"
        if there:
            remedy += f", or name one of: {', '.join(there)}"
        rule = f"is a selection in {folder.url}/bitmaps"
        raise ConfigError([Problem(key, name, rule, remedy)]) from None
    except (ValueError, KeyError, TypeError, EOFError) as error:
        rule = f"can be read as a selection ({error})"
        raise ConfigError([Problem(key, name, rule, "make the selection again")]) from None
    samples = np.array([s.samples for s in manifest.shards], np.int64)
    if not belongs or len(bits) != int(((samples + 7) // 8).sum()):
        rule = "was made for this state of the dataset; samples have been added or changed since"
        raise ConfigError([Problem(key, name, rule, "make the selection again")])
    bitmap = Bitmap(bits, samples)
    if not bitmap.is_clean() or hashlib.sha256(bits).hexdigest() != digest:
        rule = "holds the bits that it was written with"
        raise ConfigError([Problem(key, name, rule, "make the selection again")])
    return bitmap, digest
