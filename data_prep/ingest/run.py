"""Runs an ingest: plan, what is there already, jobs until every row has ended, manifest and report.

Killed anywhere and run again it goes on. Each row's shard is fixed by the plan, and a shard's bytes by
its rows, so that what is made twice is the same.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from data_prep.config import IngestConfig
from data_prep.engines.settings import engine_problems
from data_prep.errors import ConfigError, IngestError, Problem
from data_prep.ingest.cluster import Cluster, JobError, open_cluster
from data_prep.ingest.commit import PARTS, Committed, fence
from data_prep.ingest.job import Job, Shard, find, give_up
from data_prep.ingest.progress import SECONDS_BETWEEN_FIGURES, Figures, Meter, ProgressLine
from data_prep.ingest.scheduler import Scheduler
from data_prep.plan import Plan, make_plan
from data_prep.report import write_report
from data_prep.schema import MANIFEST_NAME, Manifest, canonical_hash
from data_prep.storage import Folder
from data_prep.tables.shard import TableChangedError

_SURVEY_THREADS = 32
_SURVEY_SHARDS = 1000  # asked for at a time
# Jobs that fail in a row, with none in between that does not: it is not the jobs then.
_FAILURES_IN_A_ROW = 20


@dataclass
class _Source:
    """One table on its way to a dataset folder."""

    name: str
    folder: Folder
    plan: Plan
    shards: list[Shard]
    found: dict[str, Committed]


def run_ingest(
    config: IngestConfig,
    *,
    only: str | None = None,
    silent: bool = False,
    on_figures: Callable[[Figures], None] = lambda figures: None,
) -> dict[str, object]:
    """Turns every URL table of the config into a dataset folder, `{output}/{source}`.

    Args:
        config: the ingest section.
        only: name of the one source to ingest; None: all.
        silent: whether to show no progress.
        on_figures: called about once a second with where the ingest stands.

    Returns:
        {"sources": {name: {rows, ok, statuses, shards, resumed_shards, folder, fingerprint}}, "seconds",
        "images_per_second"}; the latter two are of this run, without plan and start.

    Raises:
        ConfigError: tables that cannot be read, or folders that hold another ingest.
        IngestError: nothing succeeds any more; what is committed stays.
    """
    sources = _plan(config, only)
    try:
        for source in sources:
            _prepare(source)
    except OSError as error:
        raise ConfigError([_no_output(config, error)]) from None
    try:
        figures = _work(config, sources, silent, on_figures)
        summary: dict[str, object] = {"sources": {s.name: _finish(s) for s in sources}}
    except OSError as error:
        raise IngestError(
            f"tables or {config.output} cannot be reached any more: {error}. What is committed stays; "
            "run the ingest again"
        ) from error
    summary["seconds"] = round(figures.seconds, 3)
    summary["images_per_second"] = round(figures.made / max(figures.seconds, 1e-9), 1)
    return summary


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
    sources, problems = [], engine_problems(config)
    for name in names:
        try:
            folder = Folder(f"{config.output.rstrip('/')}/{name}", "ingest.output")
            sources.append(_Source(name, folder, make_plan(config, name, folder), [], {}))
        except ConfigError as error:
            problems += error.problems
        except OSError as error:
            problems.append(_no_output(config, error))
    if problems:
        raise ConfigError(problems)
    for source in sources:
        identity = {"source": source.name, "policy_hash": source.plan.policy_hash}
        plan = canonical_hash(identity)
        source.shards = [
            Shard(source.folder.url, source.name, config, plan, spec)
            for spec in source.plan.shards()
        ]
    return sources


def _no_output(config: IngestConfig, error: OSError) -> Problem:
    rule = f"must be a place that can be written ({error})"
    remedy = "correct the path, the permissions, the credentials or the end point of the store"
    return Problem("ingest.output", config.output, rule, remedy)


def _prepare(source: _Source) -> None:
    """Clears what killed tasks have left, saves the plan, and finds the shards that are made."""
    fence(source.folder)
    source.folder.remove(PARTS)
    source.plan.save(source.folder)
    with ThreadPoolExecutor(_SURVEY_THREADS) as threads:
        for start in range(0, len(source.shards), _SURVEY_SHARDS):
            shards = source.shards[start : start + _SURVEY_SHARDS]
            for shard, done in zip(
                shards, threads.map(lambda s: find(source.folder, s), shards), strict=True
            ):
                if done is not None:
                    source.found[shard.spec.name] = done
    if len(source.found) < len(source.shards):
        source.folder.remove(MANIFEST_NAME)  # of fewer rows: more are to come


def _work(
    config: IngestConfig,
    sources: list[_Source],
    silent: bool,
    on_figures: Callable[[Figures], None],
) -> Figures:
    """Does all jobs; the figures at the end."""
    scheduler = Scheduler(
        [sh for s in sources for sh in s.shards if sh.spec.name not in s.found],
        [
            (sh, s.found[sh.spec.name])
            for s in sources
            for sh in s.shards
            if sh.spec.name in s.found
        ],
        workers=1,
        passes=config.download.passes,
        wait_seconds=config.download.pass_wait_seconds,
        max_failures=config.ray.max_failures,
    )
    rows = sum(source.plan.rows for source in sources)
    if not scheduler.has_jobs:
        return Meter(rows, +scheduler.statuses).figures(+scheduler.statuses)
    with ExitStack() as stack:
        # Ray takes seconds to start: only once there is something to do.
        cluster = stack.enter_context(open_cluster(config.ray))
        show = stack.enter_context(ProgressLine("ingest", silent=silent))
        meter = Meter(rows, +scheduler.statuses)
        for figures in _loop(scheduler, cluster, meter):
            show(figures)
            on_figures(figures)
    for source in sources:
        source.found = {
            shard.spec.name: scheduler.results[source.name, shard.spec.name]
            for shard in source.shards
        }
    return figures


def _loop(scheduler: Scheduler, cluster: Cluster, meter: Meter) -> Iterator[Figures]:
    shown, failures = time.monotonic(), 0
    while scheduler.has_jobs or cluster.in_flight:
        scheduler.workers = cluster.workers
        while cluster.in_flight < scheduler.workers:
            job = scheduler.next(time.monotonic())
            if job is None:
                break
            cluster.submit(job)
        if not cluster.in_flight:  # only passes that are not due yet
            time.sleep(min(SECONDS_BETWEEN_FIGURES, scheduler.seconds_to_wait(time.monotonic())))
        for job, result in cluster.wait(SECONDS_BETWEEN_FIGURES):
            if isinstance(result, JobError):
                failures += 1
                _failed(scheduler, job, result, failures)
            else:
                failures = 0
                scheduler.done(job, result, time.monotonic())
        if time.monotonic() - shown >= SECONDS_BETWEEN_FIGURES:
            shown = time.monotonic()
            yield meter.figures(_total(scheduler, cluster.told()))
    yield meter.figures(+scheduler.statuses)


def _failed(scheduler: Scheduler, job: Job, error: JobError, in_a_row: int) -> None:
    if isinstance(error.cause, TableChangedError):
        key = f"ingest.sources.{job.shard.source}.table"
        rule = f"the table must stay as it is while it is ingested: {error.cause}"
        raise ConfigError([Problem(key, job.shard.spec.file, rule, "run the ingest again")])
    if in_a_row >= max(_FAILURES_IN_A_ROW, 4 * scheduler.workers):
        raise IngestError(
            f"{in_a_row} tasks have failed in a row, the last one with: {error}. What is committed "
            "stays; mend the cause and run the ingest again"
        )
    folder = Folder(job.shard.folder, "ingest.output")
    fence(folder, job.name)  # its process may live on, on a node that is out of reach
    if scheduler.failed(job, str(error)):
        state = find(folder, job.shard) or give_up(job.shard, str(error))
        scheduler.given_up(job.shard, state)


def _total(scheduler: Scheduler, told: dict[str, dict[str, int]]) -> Counter:
    total = +scheduler.statuses
    for name, statuses in told.items():
        if not name.endswith("-retry"):  # its rows count already
            total.update(statuses)
    return total


def _finish(source: _Source) -> dict[str, object]:
    committed = [source.found[shard.spec.name] for shard in source.shards]
    statuses: Counter = Counter()
    for shard in committed:
        statuses.update(shard.statuses)
    manifest = Manifest(
        source=source.name,
        input_fingerprint=source.plan.input_fingerprint,
        policy_hash=source.plan.policy_hash,
        rows=sum(shard.entry.rows for shard in committed),
        samples=sum(shard.entry.samples for shard in committed),
        statuses=dict(sorted(statuses.items())),
        shards=[shard.entry for shard in committed],
    )
    if not manifest.rows == source.plan.rows == statuses.total():
        raise RuntimeError(
            f"{source.name}: {source.plan.rows} rows planned, {manifest.rows} in the shards, "
            f"{statuses.total()} with a status"
        )
    write_report(source.folder, manifest, _sizes(committed))
    data = manifest.model_dump_json(indent=1).encode() + b"\n"
    source.folder.write(MANIFEST_NAME, data)
    return {
        "rows": manifest.rows,
        "ok": manifest.samples,
        "statuses": manifest.statuses,
        "shards": len(committed),
        "resumed_shards": sum(shard.resumed for shard in committed),
        "folder": source.folder.url,
        "fingerprint": manifest.fingerprint,
    }


def _sizes(committed: Iterable[Committed]) -> list[int]:
    return [sum(counts) for counts in zip(*(c.sizes for c in committed), strict=True)]
