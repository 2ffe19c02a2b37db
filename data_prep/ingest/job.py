"""What one task does: make a shard, or a part of one, join parts, or go over transient failures again.

Runs in a worker. Knows nothing of Ray; how far it is, it tells through a function it is given.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.config import IngestConfig
from data_prep.ingest.commit import (
    Committed,
    commit,
    find_committed,
    part_place,
    read_piece,
    shard_place,
    staging,
)
from data_prep.ingest.piece import Piece, PieceWriter
from data_prep.outcome import Outcome
from data_prep.schema import Status
from data_prep.storage import Folder
from data_prep.tables.shard import ShardSpec, read_shard

SECONDS_BETWEEN_TELLINGS = 1.0
Tell = Callable[[str, dict[str, int]], None]


@dataclass(frozen=True)
class Shard:
    """What every job on a shard needs to know of it.

    Attributes:
        folder: of the dataset, path or URL.
        source: name of the source.
        plan: hash of input and policy; a shard of another one is never taken as done.
        spec: its rows.
    """

    folder: str
    source: str
    config: IngestConfig
    plan: str
    spec: ShardSpec


@dataclass(frozen=True)
class Part:
    """Rows start to stop of a shard, counted in it; with an error, those of a part that failed for good."""

    start: int
    stop: int
    error: str | None = None


@dataclass(frozen=True)
class Job:
    """One task.

    Attributes:
        shard: of which shard.
        kind: whole, part, join or retry.
        parts: the part to make, or the parts to join.
    """

    shard: Shard
    kind: str
    parts: tuple[Part, ...] = ()

    @property
    def name(self) -> str:
        """Names the job among all of its source."""
        spec = self.shard.spec
        rows = f"-{self.parts[0].start}" if self.kind == "part" else ""
        return f"{spec.name}{rows}-{self.kind}"

    @property
    def label(self) -> str:
        """Names the job among all of the ingest."""
        return f"{self.shard.source}/{self.name}"


def run_job(job: Job, tell: Tell = lambda name, statuses: None) -> Committed:
    """Does the job; what is made already is found and not made again.

    Args:
        job: what to do.
        tell: called now and then with the job's label, and its rows by status so far.

    Raises:
        OSError: a table or the dataset folder cannot be read or written.
    """
    shard = job.shard
    folder = Folder(shard.folder, "ingest.output")
    place = shard_place(shard.spec.name)
    found = find(folder, shard)
    if found and job.kind != "retry":
        return found
    with staging(folder, job.name) as prepared:
        # A retry that was killed while it committed leaves no shard behind.
        if job.kind == "whole" or (job.kind == "retry" and not found):
            pieces = [_make(job, read_shard(shard.spec), prepared / "samples", tell)]
        elif job.kind == "part":
            (part,) = job.parts
            place = part_place(shard.spec.name, part.start, part.stop)
            rows = read_shard(shard.spec).slice(part.start, part.stop - part.start)
            pieces = [_make(job, rows, prepared / "samples", tell)]
        elif job.kind == "join":
            pieces = [_part_piece(folder, shard, part, prepared) for part in job.parts]
        else:
            former = read_piece(folder, place, prepared)
            again = former.ledger.filter(pc.field("transient"))["row"]
            rows = read_shard(shard.spec)
            rows = rows.filter(pc.is_in(rows["row"], value_set=again.combine_chunks()))
            pieces = [former, _make(job, rows, prepared / "samples", tell)]
        passes = found.passes + 1 if found else 1
        done = commit(
            folder,
            place,
            pieces,
            prepared,
            name=shard.spec.name,
            plan=shard.plan,
            failed=any(part.error for part in job.parts),
            passes=passes,
        )
    if job.kind == "join":
        remove_parts(folder, job)
    return done


def find(folder: Folder, shard: Shard) -> Committed | None:
    """The shard as an earlier job left it; None when it must be made."""
    done = find_committed(folder, shard_place(shard.spec.name))
    same = done and done.plan == shard.plan and done.entry.rows == shard.spec.rows
    return done if same and not done.failed else None


def give_up(shard: Shard, error: str) -> Committed:
    """Commits a shard whose worker failed for good: no samples, every row accounted for.

    The next ingest into the folder makes such a shard again.
    """
    folder = Folder(shard.folder, "ingest.output")
    with staging(folder, f"{shard.spec.name}-failed") as prepared:
        piece = _failed_piece(read_shard(shard.spec), error, prepared / "samples")
        return commit(
            folder,
            shard_place(shard.spec.name),
            [piece],
            prepared,
            name=shard.spec.name,
            plan=shard.plan,
            failed=True,
        )


def remove_parts(folder: Folder, job: Job) -> None:
    for part in job.parts:
        for name in part_place(job.shard.spec.name, part.start, part.stop):
            folder.remove(name)


def _part_piece(folder: Folder, shard: Shard, part: Part, prepared) -> Piece:
    if part.error is None:
        return read_piece(folder, part_place(shard.spec.name, part.start, part.stop), prepared)
    rows = read_shard(shard.spec).slice(part.start, part.stop - part.start)
    return _failed_piece(rows, part.error, prepared / f"failed-{part.start}")


def _failed_piece(rows: pa.Table, error: str, samples) -> Piece:
    writer = PieceWriter(rows, samples)
    for i in range(rows.num_rows):
        writer.put(i, Outcome(Status.INTERNAL_ERROR, error))
    return writer.finish()


def _make(job: Job, rows: pa.Table, samples, tell: Tell) -> Piece:
    config = job.shard.config
    writer = PieceWriter(rows, samples)
    told, statuses = time.monotonic(), Counter()

    def put(i: int, outcome: Outcome) -> None:
        nonlocal told
        writer.put(i, outcome)
        statuses[str(outcome.status)] += 1
        if time.monotonic() - told >= SECONDS_BETWEEN_TELLINGS:
            told = time.monotonic()
            tell(job.label, dict(statuses))

    ended = zip(rows["status"].to_pylist(), rows["error"].to_pylist(), strict=True)
    for i, (status, error) in enumerate(ended):
        if status is not None:
            put(i, Outcome(Status(status), error or ""))
    engine = import_module(f"data_prep.engines.{config.download.engine}")
    engine.process(rows, config, config.sources[job.shard.source], put)
    return writer.finish()
