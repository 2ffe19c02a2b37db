"""Puts a piece where it is to stay, whole or not at all, on disk or behind a URL; and finds it again.

Three files make a piece: tar, index, ledger. They are prepared in a staging folder and moved into
place, the ledger last, so its presence marks the piece as committed. On a disk the staging folder lies
in the dataset folder: whoever removes it keeps a task that was thought dead from committing later. A
store cannot rename; there every file appears when its upload is whole.
"""

import json
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.ingest.piece import Piece, write_merged
from data_prep.schema import ShardEntry
from data_prep.storage import Folder

STAGING = ".staging"
PARTS = "parts"
SIZE_EDGES = tuple(2**n for n in range(4, 16))  # of the histogram of original sizes, pixels
_NOTE_KEY = b"roseate.shard"
_TAIL_BYTES = 1 << 16


class Place(NamedTuple):
    """Names of a piece's files below the dataset folder."""

    tar: str
    index: str
    ledger: str


@dataclass(frozen=True)
class Committed:
    """A piece that is in place, as the metadata of its ledger tells it.

    Attributes:
        entry: as the manifest lists it.
        plan: hash of input and policy.
        failed: its worker died too often; the next ingest makes it again.
        passes: over its transient failures, the first one included.
        transient: rows that a further pass may find better.
        statuses: rows by status.
        sizes: images by the longer side of the original; place i is up to SIZE_EDGES[i] pixels.
        resumed: found, not made by this ingest.
    """

    entry: ShardEntry
    plan: str
    failed: bool
    passes: int
    transient: int
    statuses: dict[str, int]
    sizes: list[int]
    resumed: bool = False


def shard_place(name: str) -> Place:
    return Place(f"shards/{name}.tar", f"index/{name}.npy", f"ledger/{name}.parquet")


def part_place(name: str, start: int, stop: int) -> Place:
    """Of rows start to stop (counted in the shard) that a task of their own makes."""
    stem = f"{PARTS}/{name}-{start}-{stop}"
    return Place(f"{stem}.tar", f"{stem}.npy", f"{stem}.parquet")


@contextmanager
def staging(folder: Folder, task: str) -> Iterator[Path]:
    """A new folder on this machine for what `task` prepares; removed at the end."""
    if folder.is_local:
        path = folder.path / STAGING / f"{task}.{uuid.uuid4().hex}"
        path.mkdir(parents=True)
    else:
        path = Path(tempfile.mkdtemp(prefix="roseate-ingest-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def fence(folder: Folder, task: str | None = None) -> None:
    """Takes from one task, or from all, what it has prepared: it cannot commit any more."""
    if folder.is_local:
        for path in (folder.path / STAGING).glob(f"{task}.*" if task else "*"):
            shutil.rmtree(path, ignore_errors=True)


def commit(
    folder: Folder,
    place: Place,
    pieces: Sequence[Piece],
    prepared: Path,
    *,
    name: str,
    plan: str,
    failed: bool = False,
    passes: int = 1,
) -> Committed:
    """Merges pieces and puts the result in place.

    Args:
        folder: the dataset folder.
        place: where.
        pieces: see `write_merged`.
        prepared: staging folder of this task.
        name, plan, failed, passes: see `Committed`.

    Raises:
        OSError: it cannot be written, or the task has been fenced off.
    """
    tar, index_file, ledger_file = (prepared / Path(part).name for part in place)
    with tar.open("wb") as file:
        ledger, index, digest = write_merged(pieces, file)
        _flush(file)
    with index_file.open("wb") as file:
        np.save(file, index)
        _flush(file)
    statuses = Counter(ledger["status"].to_pylist())
    done = Committed(
        entry=ShardEntry(
            name=name,
            path=place.tar,
            rows=ledger.num_rows,
            samples=len(index),
            bytes=tar.stat().st_size,
            sha256=digest,
        ),
        plan=plan,
        failed=failed,
        passes=passes,
        transient=pc.sum(ledger["transient"]).as_py() or 0,
        statuses=dict(sorted(statuses.items())),
        sizes=_sizes(ledger),
    )
    note = json.dumps(asdict(done) | {"entry": done.entry.model_dump()})
    with ledger_file.open("wb") as file:
        pq.write_table(ledger.replace_schema_metadata({_NOTE_KEY: note}), file)
        _flush(file)
    folder.remove(place.ledger)  # from here on the piece counts as not made
    for source, target in zip((tar, index_file, ledger_file), place, strict=True):
        _move(folder, source, target)
    return done


def find_committed(folder: Folder, place: Place) -> Committed | None:
    """The piece that is in place; None where there is none, or one that is not whole.

    Raises:
        OSError: the folder does not answer, which is not to be taken for a piece that is missing.
    """
    try:
        footer = _read_tail(folder, place.ledger)
        size = folder.size(place.tar)
        if not folder.exists(place.index):
            return None
    except FileNotFoundError:
        return None
    try:
        schema = pq.read_schema(pa.BufferReader(footer))
        note = json.loads((schema.metadata or {})[_NOTE_KEY])
        done = Committed(**note | {"entry": ShardEntry(**note["entry"]), "resumed": True})
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    return done if size == done.entry.bytes else None


def read_piece(folder: Folder, place: Place, prepared: Path) -> Piece:
    """A committed piece, its samples on this machine.

    Raises:
        OSError: it cannot be read.
    """
    ledger = pq.read_table(pa.BufferReader(folder.read(place.ledger)))
    index = np.load(pa.BufferReader(folder.read(place.index)))
    if folder.is_local:
        return Piece(ledger, index, folder.path / place.tar)
    samples = prepared / f"{uuid.uuid4().hex}.tar"
    folder.download(place.tar, samples)
    return Piece(ledger, index, samples)


def _read_tail(folder: Folder, name: str) -> bytes:
    """The end of a parquet file, with all of its footer: a ledger itself may have megabytes."""
    with folder.open_random(name) as file:
        size = file.seek(0, os.SEEK_END)
        want = _TAIL_BYTES
        while True:
            file.seek(max(0, size - want))
            tail = file.read()
            footer = int.from_bytes(tail[-8:-4], "little") + 8  # its length stands before the end
            if footer <= len(tail) or want >= size or footer > size:
                return tail
            want = footer


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())  # a rename must never outlive the bytes it names


def _move(folder: Folder, source: Path, name: str) -> None:
    if folder.is_local:
        target = folder.path / name
        target.parent.mkdir(exist_ok=True)
        os.replace(source, target)
    else:
        folder.upload(source, name)


def _sizes(ledger: pa.Table) -> list[int]:
    columns = [
        ledger[name].drop_null().to_numpy() for name in ("original_width", "original_height")
    ]
    bins = np.searchsorted(SIZE_EDGES, np.maximum(*columns))
    return np.bincount(bins, minlength=len(SIZE_EDGES) + 1).tolist()
