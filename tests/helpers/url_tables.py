"""URL tables as an ingest plans and reads them."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_prep.config import IngestConfig
from data_prep.plan import Plan, make_plan
from data_prep.storage import Folder
from data_prep.tables.shard import read_shard


def plan_table(table: Path | str, folder: Path | str, shard_rows: int = 1000, **source) -> Plan:
    """Plan a table as the source `web`, on from the plan that the folder has, and save it."""
    config = IngestConfig(
        output="out", shard_rows=shard_rows, sources={"web": {"table": str(table), **source}}
    )
    target = Folder(str(folder), "ingest.output")
    plan = make_plan(config, "web", target)
    plan.save(target)
    return plan


def read_plan(plan: Plan) -> pa.Table:
    """All rows, shard by shard."""
    return pa.concat_tables([read_shard(spec) for spec in plan.shards()])


def rows_of(table: Path, **settings) -> list[tuple[str | None, str | None, str | None]]:
    """url, caption and status of all rows; the plan's folder is beside the table."""
    plan = plan_table(table, Path(f"{table}.plan"), **settings)
    return list(_rows(read_plan(plan)))


def _rows(table: pa.Table) -> Iterator[tuple[str | None, str | None, str | None]]:
    for row in table.to_pylist():
        yield row["url"], row["caption"], row["status"]
