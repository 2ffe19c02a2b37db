"""Runs an ingest: one Ray task per shard, the tables streamed by the driver.

The plan (row i -> shard i // shard_rows) is fixed by the fingerprint of the table and the hash of
the policy, and kept in plan.json. An ingest killed anywhere is run again and goes on; one whose
table or policy has changed is refused before anything is touched.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ray
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from data_prep.config import IngestConfig, policy_hash
from data_prep.errors import ConfigError, Problem
from data_prep.report import write_report
from data_prep.schema import MANIFEST_NAME, Manifest, Status, canonical_hash
from data_prep.shards import (
    TEMPORARY_SUFFIX,
    ShardResult,
    ShardTask,
    committed,
    make_failed_shard,
    make_shard,
)
from data_prep.sources import Table

PLAN_NAME = "plan.json"
_MAX_RETRIES = 2
_OBJECT_STORE_BYTES = 200_000_000  # shards go to files, never through the object store


@dataclass
class _Source:
    """One source on its way from table to dataset folder."""

    name: str
    folder: Path
    table: Table
    rows: int
    plan: dict[str, object]
    results: dict[str, ShardResult] = field(default_factory=dict)
    started: float = 0.0
    ended: float = 0.0

    @property
    def statuses(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for result in self.results.values():
            for status, count in result.statuses.items():
                total[status] = total.get(status, 0) + count
        return dict(sorted(total.items()))


def run_ingest(
    config: IngestConfig, *, only: str | None = None, progress: bool = True
) -> dict[str, object]:
    """Turns every URL table of the config into a dataset folder, `{output}/{source}`.

    Args:
        config: the ingest section.
        only: name of the one source to ingest; None: all.
        progress: whether to draw a bar on the terminal.

    Returns:
        {"sources": {name: {rows, ok, statuses, shards, resumed_shards, seconds,
        images_per_second, folder}}}; images_per_second counts what this run made itself.

    Raises:
        ConfigError: tables that cannot be read, or folders that hold another ingest.
    """
    sources = _plan(config, only)
    for source in sources:
        _prepare(source)
    with ExitStack() as stack:
        advance = stack.enter_context(_bar(sources, progress))
        # Ray takes seconds to start: only once a shard is found that is not committed.
        _run_tasks(config, sources, lambda: stack.enter_context(_ray_session(config)), advance)
    return {"sources": {source.name: _finish(source) for source in sources}}


def _plan(config: IngestConfig, only: str | None) -> list[_Source]:
    names = [*config.sources]
    if only is not None:
        if only not in names:
            rule = f"the source must be one of: {', '.join(names) or '(none configured)'}"
            raise ConfigError([Problem("only", only, rule, "name one of those")])
        names = [only]
    if not names:
        rule = "an ingest needs at least one source"
        raise ConfigError([Problem("ingest.sources", {}, rule, "add a source with its table")])
    sources, problems = [], []
    for name in names:
        try:
            table = Table(name, config.sources[name])
            source = _Source(
                name=name,
                folder=Path(config.output) / name,
                table=table,
                rows=table.count(),
                plan={
                    "source": name,
                    "input_fingerprint": table.fingerprint(),
                    "policy_hash": policy_hash(config, name),
                },
            )
            _check_folder(source)
            sources.append(source)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return sources


def _check_folder(source: _Source) -> None:
    """Refuses a folder that another table or another policy has filled."""
    differences = {
        "input_fingerprint": f"ingest.sources.{source.name}.table: the table's contents",
        "policy_hash": "ingest: the policy (image, filter, shard_rows, columns, byte limits)",
    }
    for file in (PLAN_NAME, MANIFEST_NAME):
        path = source.folder / file
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            found = {}
        for key, text in differences.items():
            if found.get(key) != source.plan[key]:
                where, what = text.split(": ", 1)
                raise ConfigError(
                    [
                        Problem(
                            where,
                            str(source.folder),
                            f"{what} must be the same as when the folder was begun ({file}); "
                            "nothing was touched",
                            "set another ingest.output, go back to the former settings, or delete "
                            "the folder",
                        )
                    ]
                )


def _prepare(source: _Source) -> None:
    source.folder.mkdir(parents=True, exist_ok=True)
    for stray in source.folder.glob(f"*/*{TEMPORARY_SUFFIX}"):  # of an ingest that was killed
        stray.unlink(missing_ok=True)
    _write_json(source.folder / PLAN_NAME, source.plan)


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def _ray_session(config: IngestConfig) -> Iterator[int]:
    """Yields how many tasks may be in flight; shuts down only what it started."""
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        local = config.ray.address is None
        options: dict[str, object] = {"address": "local" if local else config.ray.address}
        if local:
            options |= {
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "num_cpus": config.ray.num_workers,
            }
        with _importable_by_workers():
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
    try:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        yield config.ray.num_workers or max(1, cpus)
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _importable_by_workers() -> Iterator[None]:
    """Puts this package on the path of the worker processes, however it was found here."""
    former = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, former]))
    try:
        yield
    finally:
        if former is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = former


def _tasks(config: IngestConfig, sources: list[_Source]) -> Iterator[tuple[_Source, ShardTask]]:
    for source in sources:
        source.started = source.ended = time.monotonic()
        for first_row, rows in source.table.shards(config.shard_rows):
            name = f"{first_row // config.shard_rows:06d}"
            plan = canonical_hash(source.plan)
            yield source, ShardTask(str(source.folder), name, first_row, rows, config, plan)


Advance = Callable[[_Source, ShardResult], None]


def _run_tasks(
    config: IngestConfig, sources: list[_Source], start_ray: Callable[[], int], advance: Advance
) -> None:
    workers = 0
    remote = ray.remote(make_shard).options(max_retries=_MAX_RETRIES, retry_exceptions=True)
    in_flight: dict[ray.ObjectRef, tuple[_Source, ShardTask]] = {}

    def record(source: _Source, result: ShardResult) -> None:
        source.results[result.entry.name] = result
        source.ended = time.monotonic()
        advance(source, result)

    def wait_for_one() -> None:
        done, _ = ray.wait([*in_flight], num_returns=1)
        for reference in done:
            source, task = in_flight.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                # Every retry failed; the rows are accounted for and the other shards go on.
                text = str(error).strip().splitlines()
                result = make_failed_shard(task, text[-1] if text else type(error).__name__)
            record(source, result)

    for source, task in _tasks(config, sources):
        done = committed(task)
        if done is not None:
            record(source, done)
            continue
        workers = workers or start_ray()
        while len(in_flight) >= workers:
            wait_for_one()
        in_flight[remote.remote(task)] = (source, task)
    while in_flight:
        wait_for_one()


@contextmanager
def _bar(sources: list[_Source], show: bool) -> Iterator[Advance]:
    """Yields advance(source, result), which draws rows, share ok and images per second."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows  {task.fields[ok]}  {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not show) as bar:
        lines: dict[str, TaskID] = {
            s.name: bar.add_task(s.name, total=s.rows, ok="", speed="") for s in sources
        }

        def advance(source: _Source, result: ShardResult) -> None:
            rows = sum(r.entry.rows for r in source.results.values())
            ok = sum(r.entry.samples for r in source.results.values())
            bar.update(
                lines[source.name],
                completed=rows,
                ok=f"{100 * ok / rows:.1f}% ok",
                speed=f"{_speed(source):.0f} images/s",
            )

        yield advance


def _speed(source: _Source) -> float:
    made = sum(r.entry.samples for r in source.results.values() if not r.resumed)
    seconds = source.ended - source.started
    return made / seconds if seconds > 0 else 0.0


def _finish(source: _Source) -> dict[str, object]:
    shards = [source.results[name].entry for name in sorted(source.results)]
    manifest = Manifest(
        **source.plan,
        rows=sum(s.rows for s in shards),
        samples=sum(s.samples for s in shards),
        statuses=source.statuses,
        shards=shards,
    )
    if manifest.rows != source.rows:
        raise RuntimeError(
            f"{source.name}: {source.rows} rows planned, {manifest.rows} accounted for; "
            "was the table changed during the ingest?"
        )
    write_report(source.folder, manifest)
    _write_json(source.folder / MANIFEST_NAME, manifest.model_dump(mode="json"))
    return {
        "rows": manifest.rows,
        "ok": manifest.statuses.get(Status.OK, 0),
        "statuses": manifest.statuses,
        "shards": len(shards),
        "resumed_shards": sum(r.resumed for r in source.results.values()),
        "seconds": round(source.ended - source.started, 3),
        "images_per_second": round(_speed(source), 1),
        "folder": str(source.folder),
    }
