"""What differs between a plan and what is there now, for whoever has to decide what to do about it."""

from itertools import zip_longest
from typing import Protocol

from data_prep.config import flatten_dict
from data_prep.errors import Problem
from data_prep.tables.scan import Scan

_KEEP = "set it back, or set another ingest.output"


class _Planned(Protocol):
    name: str
    bytes: int
    sha256: str
    rows: int
    shard_bytes: list[int]
    shard_crc32: list[int]


def policy_problems(former: dict, now: dict, source: str, folder: str) -> list[Problem]:
    """A problem for each setting that is not as it was.

    Args:
        former: policy of the plan, nested as the `ingest` section.
        now: the policy as configured.
        source: name of the source, for the keys.
        folder: which was begun with the former policy.
    """
    then, today = flatten_dict(former), flatten_dict(now)
    problems = []
    for name in sorted({*then, *today}):
        if then.get(name) == today.get(name):
            continue
        key = f"ingest.{name}".replace("ingest.source.", f"ingest.sources.{source}.")
        rule = f"must be {then.get(name)!r}, as when {folder} was begun; nothing was touched"
        if name == "schema_version":
            key, rule = "ingest.output", f"{folder} was begun by a version of another folder layout"
        problems.append(Problem(key, today.get(name), rule, _KEEP))
    return problems


def file_problem(
    key: str, table: str, planned: _Planned, size: int, now: Scan, shard_rows: int
) -> Problem:
    """A planned file with other contents.

    Args:
        key: of the table in the configuration.
        table: its value.
        planned: the file as planned.
        size: bytes it has now.
        now: what is in it now.
        shard_rows: rows per shard.
    """
    rule = (
        f"{planned.name} is planned already and must not change: {_told(planned.rows, planned.bytes)}, "
        f"sha256 {planned.sha256[:16]}... then; {_told(now.rows, size)}, sha256 {now.sha256[:16]}... now"
    )
    then = zip(planned.shard_bytes, planned.shard_crc32, strict=True)
    today = zip(now.shard_bytes, now.shard_crc32, strict=True)
    pairs = enumerate(zip_longest(then, today))
    first = next((i for i, (a, b) in pairs if a != b), None)
    if first is not None:
        rows = f"{first * shard_rows} to {(first + 1) * shard_rows - 1}"
        rule += f"; the first that differ are among rows {rows} of the file"
    remedy = "restore it and put new rows into a file of their own, or set another ingest.output"
    return Problem(key, table, rule, remedy)


def _told(rows: int, size: int) -> str:
    return f"{rows:,} rows and {size:,} bytes"
