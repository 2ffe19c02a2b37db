"""Counts what an ingest has done, from its files alone: are all rows of the table accounted for?"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.errors import ConfigError, Problem
from data_prep.ingest.commit import find_committed, shard_place
from data_prep.plan import PLAN_NAME, Plan, load_plan
from data_prep.schema import MANIFEST_NAME, Status
from data_prep.storage import Folder
from data_prep.tables.scan import hash_file
from data_prep.tables.shard import ShardSpec

_THREADS = 16


@dataclass
class SourceStatus:
    """What one dataset folder holds.

    Attributes:
        folder: path or URL.
        rows: of the plan.
        statuses: rows in the ledgers, by status.
        missing: shards that are not made yet, and the rows of them.
        faults: what does not add up, a line each.
        transient: rows that another pass may find better.
        complete: whether there is a manifest.
    """

    folder: str
    rows: int = 0
    statuses: Counter = field(default_factory=Counter)
    shards: int = 0
    missing: int = 0
    missing_rows: int = 0
    transient: int = 0
    complete: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def adds_up(self) -> bool:
        """Whether every row of the plan has one status."""
        return not self.faults and self.statuses.total() == self.rows


def read_status(path: str, *, verify: bool = False) -> list[SourceStatus]:
    """Reads the ledgers of a dataset folder, or of all those directly in an ingest's output folder.

    Args:
        path: folder or URL.
        verify: also read every tar and compare its sha256.

    Raises:
        ConfigError: there is no ingest.
    """
    folder = Folder(path, "DIR")
    if folder.exists(PLAN_NAME):
        return [_read(folder, verify)]
    names = sorted(
        {n.rpartition("/")[0] for n in folder.names(PLAN_NAME)} if folder.exists() else ()
    )
    found = [Folder(f"{path.rstrip('/')}/{name}", "DIR") for name in names if "/" not in name]
    if not found:
        rule = (
            f"is the folder of an ingest, with {PLAN_NAME} in it or in the folders of its sources"
        )
        remedy = "give ingest.output, or a source's folder in it"
        raise ConfigError([Problem("DIR", path, rule, remedy)])
    return [_read(each, verify) for each in found]


def _read(folder: Folder, verify: bool) -> SourceStatus:
    plan: Plan = load_plan(folder, "DIR")
    status = SourceStatus(folder.url, rows=plan.rows, shards=plan.num_shards)
    status.complete = folder.exists(MANIFEST_NAME)
    with ThreadPoolExecutor(_THREADS) as threads:
        for spec, found in threads.map(lambda s: (s, _shard(folder, s, verify)), plan.shards()):
            if found is None:
                status.missing += 1
                status.missing_rows += spec.rows
                continue
            statuses, transient, faults = found
            status.statuses.update(statuses)
            status.transient += transient
            status.faults += faults
    return status


def _shard(folder: Folder, spec: ShardSpec, verify: bool) -> tuple[Counter, int, list[str]] | None:
    place = shard_place(spec.name)
    if not folder.exists(place.ledger):
        return None
    committed = find_committed(folder, place)
    if committed is None:
        return Counter(), 0, [f"{place.ledger}: the ledger, or the tar it speaks of, is not whole"]
    columns = ["row", "status", "transient"]
    ledger = pq.read_table(pa.BufferReader(folder.read(place.ledger)), columns=columns)
    statuses = Counter(ledger["status"].to_pylist())
    faults = []
    wanted = np.arange(spec.first_row, spec.first_row + spec.rows)
    rows = ledger["row"].to_numpy()
    if not np.array_equal(rows, wanted):
        lost, twice = len(np.setdiff1d(wanted, rows)), len(rows) - len(np.unique(rows))
        faults.append(
            f"{place.ledger}: of {spec.rows} rows planned {lost} are missing, {twice} are there "
            f"twice, {len(np.setdiff1d(rows, wanted))} belong elsewhere"
        )
    unknown = set(statuses) - set(Status)
    if unknown:
        faults.append(
            f"{place.ledger}: no such status: {', '.join(map(str, sorted(unknown, key=str)))}"
        )
    if statuses["ok"] != committed.entry.samples:
        faults.append(
            f"{place.tar}: {committed.entry.samples} samples, {statuses['ok']} rows are ok"
        )
    if verify and hash_file(folder, place.tar) != committed.entry.sha256:
        faults.append(f"{place.tar}: sha256 differs from the ledger's")
    return statuses, committed.transient, faults


def format_status(statuses: list[SourceStatus]) -> str:
    """A table for a person."""
    return "\n\n".join(_format(status) for status in statuses)


def _format(s: SourceStatus) -> str:
    counts = sorted(s.statuses.items(), key=lambda pair: (pair[0] != Status.OK, -pair[1]))
    if s.missing_rows:
        counts.append(("(not ended yet)", s.missing_rows))
    width = max([len(name) for name, _ in counts], default=0)
    lines = [f"{s.folder}: {s.rows:,} rows in {s.shards:,} shards"]
    lines += [
        f"  {name:{width}}  {count:>12,}  {100 * count / max(1, s.rows):5.1f}%"
        for name, count in counts
    ]
    lines += [f"  fault: {fault}" for fault in s.faults]
    if s.adds_up:
        end = f"every row has one status, {s.statuses.total():,} of {s.rows:,}"
        end += "" if s.complete else "; no manifest yet: run the ingest again to finish"
        if s.transient:
            end += f"; {s.transient:,} failed in passing (download.passes)"
    else:
        end = f"{s.statuses.total():,} of {s.rows:,} rows have a status"
        if s.missing:
            end += f", {s.missing:,} shards are not made yet: run the ingest again, it goes on"
    return "\n".join([*lines, f"  {end}"])
