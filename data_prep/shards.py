"""Makes one shard: rows -> fetch -> encode -> tar, index and ledger, committed whole or not at all.

Each file is written under a temporary name in its folder and renamed; the ledger comes last, so its
presence marks the shard as committed. The tar's bytes depend on nothing but the rows, the bodies
fetched and the policy: a shard done again comes out the same.
"""

import asyncio
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import IngestConfig
from data_prep.fetch import Fetcher
from data_prep.image import EncodedImage, encode_image
from data_prep.ledger import LEDGER_SCHEMA
from data_prep.schema import INDEX_DTYPE, ShardEntry, Status
from data_prep.sources import Row

_COMMIT_KEY = b"roseate.shard"
T = TypeVar("T")
TEMPORARY_SUFFIX = ".part"


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to make one shard."""

    folder: str  # of the dataset
    name: str  # 000000
    first_row: int
    rows: list[Row]
    config: IngestConfig
    plan: str  # hash of input and policy; a shard of another plan is never taken as done


@dataclass(frozen=True)
class ShardResult:
    """A committed shard."""

    entry: ShardEntry
    statuses: dict[str, int]
    resumed: bool = False


@dataclass
class Outcome:
    """One row on its way: its ledger record, and the stored image when it ended ok."""

    record: dict[str, object]
    data: bytes = field(default=b"", repr=False)


def shard_paths(folder: Path, name: str, suffix: str = "") -> tuple[Path, Path, Path]:
    """Tar, index and ledger of a shard."""
    folder = Path(folder)
    return (
        folder / "shards" / f"{name}.tar{suffix}",
        folder / "index" / f"{name}.npy{suffix}",
        folder / "ledger" / f"{name}.parquet{suffix}",
    )


def make_shard(task: ShardTask) -> ShardResult:
    """Makes the shard, or finds it already committed."""
    done = committed(task)
    if done is not None:
        return done
    return _commit(task, asyncio.run(_process(task)), failed=False)


def make_failed_shard(task: ShardTask, error: str) -> ShardResult:
    """Commits a shard whose worker failed for good: no samples, every row accounted for.

    The next ingest into the folder tries such a shard again.
    """
    outcomes = [_outcome(task, i, Status.INTERNAL_ERROR, error) for i in range(len(task.rows))]
    return _commit(task, outcomes, failed=True)


def committed(task: ShardTask) -> ShardResult | None:
    """The shard as an earlier ingest left it; None when it must be made."""
    tar_path, index_path, ledger_path = shard_paths(Path(task.folder), task.name)
    if not (ledger_path.is_file() and tar_path.is_file() and index_path.is_file()):
        return None
    try:
        note = json.loads((pq.read_schema(ledger_path).metadata or {})[_COMMIT_KEY])
        entry = ShardEntry.model_validate(note["entry"])
    except (pa.ArrowInvalid, KeyError, ValueError):
        return None
    whole = tar_path.stat().st_size == entry.bytes and entry.rows == len(task.rows)
    if note["plan"] != task.plan or note["failed"] or not whole:
        return None
    return ShardResult(entry, note["statuses"], resumed=True)


async def _process(task: ShardTask) -> list[Outcome]:
    slots = asyncio.Semaphore(task.config.fetch.concurrency)
    # One thread: one image is decoded at a time, while the others are being fetched.
    with ThreadPoolExecutor(max_workers=1) as decoder:
        async with Fetcher(task.config.fetch) as fetcher:

            async def one(i: int) -> Outcome:
                async with slots:
                    return await _process_row(task, i, fetcher, decoder)

            return await asyncio.gather(*(one(i) for i in range(len(task.rows))))


async def _process_row(
    task: ShardTask, i: int, fetcher: Fetcher, decoder: ThreadPoolExecutor
) -> Outcome:
    url, caption = task.rows[i]
    if url is None:
        return _outcome(task, i, Status.MISSING_URL, "the row has no url")
    if caption is None:
        return _outcome(task, i, Status.MISSING_CAPTION, "the row has no caption")
    fetched = await fetcher.fetch(url)
    try:
        if fetched.status is Status.OK:
            encoded = await asyncio.get_running_loop().run_in_executor(
                decoder, encode_image, fetched.body, task.config.image, task.config.filter
            )
        else:
            encoded = EncodedImage(fetched.status, fetched.error)
        outcome = _outcome(task, i, encoded.status, encoded.error)
        outcome.data = encoded.data
        outcome.record |= {
            "final_url": fetched.final_url,
            "http_status": fetched.http_status,
            "fetched_bytes": len(fetched.body) or None,
            "sha256_fetched": _sha256(fetched.body),
            "sha256_stored": _sha256(encoded.data),
            "original_width": encoded.original_width,
            "original_height": encoded.original_height,
            "width": encoded.width,
            "height": encoded.height,
            "seconds": fetched.seconds,
        }
        return outcome
    finally:
        await fetcher.release(fetched)


def _outcome(task: ShardTask, i: int, status: Status, error: str) -> Outcome:
    url, caption = task.rows[i]
    row = task.first_row + i
    record: dict[str, object] = dict.fromkeys(LEDGER_SCHEMA.names)
    record |= {"row": row, "key": f"{row:09d}", "url": url, "caption": caption}
    return Outcome(record | {"status": str(status), "error": error or None})


def _sha256(data: bytes) -> str | None:
    return hashlib.sha256(data).hexdigest() if data else None


def _commit(task: ShardTask, outcomes: list[Outcome], *, failed: bool) -> ShardResult:
    folder = Path(task.folder)
    paths = shard_paths(folder, task.name)
    temporary = shard_paths(folder, task.name, f".{os.getpid()}{TEMPORARY_SUFFIX}")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    paths[2].unlink(missing_ok=True)  # from here on the shard counts as not made
    try:
        index = _write(temporary[0], lambda f: _write_tar(f, outcomes, task.config.image.format))
        _write(temporary[1], lambda f: np.save(f, index))
        with temporary[0].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entry = ShardEntry(
            name=task.name,
            path=f"shards/{task.name}.tar",
            rows=len(outcomes),
            samples=len(index),
            bytes=temporary[0].stat().st_size,
            sha256=digest,
        )
        statuses = dict(sorted(Counter(str(o.record["status"]) for o in outcomes).items()))
        note = {
            "plan": task.plan,
            "failed": failed,
            "entry": entry.model_dump(),
            "statuses": statuses,
        }
        schema = LEDGER_SCHEMA.with_metadata({_COMMIT_KEY: json.dumps(note)})
        table = pa.Table.from_pylist([o.record for o in outcomes], schema=schema)
        _write(temporary[2], lambda f: pq.write_table(table, f))
        for source, target in zip(temporary, paths, strict=True):
            os.replace(source, target)
    finally:
        for path in temporary:
            with suppress(FileNotFoundError):
                path.unlink()
    return ShardResult(entry, statuses)


def _write(path: Path, write: Callable[[BinaryIO], T]) -> T:
    with path.open("wb") as file:
        result = write(file)
        file.flush()
        os.fsync(file.fileno())  # a rename must never outlive the bytes it names
    return result


def _write_tar(file: BinaryIO, outcomes: list[Outcome], image_format: str) -> np.ndarray:
    """Writes the samples in row order; returns their index, [samples] of INDEX_DTYPE."""
    records = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)  # owner, group and mtime are 0 unless set
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for outcome in outcomes:
            record = outcome.record
            if record["status"] != Status.OK:
                continue
            text = str(record["caption"]).encode()
            start = tar.offset
            add(f"{record['key']}.{image_format}", outcome.data)
            add(f"{record['key']}.txt", text)
            add(f"{record['key']}.json", _sample_json(record))
            records.append(
                (
                    start,
                    tar.offset - start,
                    record["row"],
                    int(str(record["sha256_stored"])[:16], 16),
                    record["width"],
                    record["height"],
                    len(text),
                    1,
                )
            )
    return np.array(records, dtype=INDEX_DTYPE)


def _sample_json(record: dict[str, object]) -> bytes:
    names = ("key", "url", "caption", "sha256_fetched", "sha256_stored")
    names += ("original_width", "original_height", "width", "height")
    return json.dumps({n: record[n] for n in names}, ensure_ascii=False).encode()
