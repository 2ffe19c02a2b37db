"""The scheduler by itself: jobs that end in any order, fail, and leave transient failures."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.ingest.commit import SIZE_EDGES, Committed
from data_prep.ingest.job import Shard
from data_prep.ingest.scheduler import MIN_PART_ROWS, Scheduler
from data_prep.schema import ShardEntry


@dataclass(frozen=True)
class Spec:
    """All that the scheduler looks at of a plan's shard."""

    name: str
    rows: int


def shards(*rows, source="s"):
    return [Shard("folder", source, None, "plan", Spec(f"{i:06d}", n)) for i, n in enumerate(rows)]


def committed(shard, *, transient=0, passes=1, failed=False):
    rows = shard.spec.rows
    entry = ShardEntry(
        name=shard.spec.name, path="x", rows=rows, samples=0, bytes=0, sha256="0" * 64
    )
    statuses = {"ok": rows - transient} | ({"timeout": transient} if transient else {})
    sizes = [0] * (len(SIZE_EDGES) + 1)
    return Committed(entry, "plan", failed, passes, transient, statuses, sizes)


def make(shards, found=(), *, workers=2, passes=1, wait=8.0, max_failures=3):
    return Scheduler(
        shards,
        found,
        workers=workers,
        passes=passes,
        wait_seconds=wait,
        max_failures=max_failures,
    )


def drain(scheduler, now=0.0):
    jobs = []
    while (job := scheduler.next(now)) is not None:
        jobs.append(job)
    return jobs


def test_whole_shards_in_order_then_ever_smaller_parts():
    scheduler = make(shards(*[1000] * 12), workers=2)
    jobs = drain(scheduler)
    whole = [j for j in jobs if j.kind == "whole"]
    assert [j.shard.spec.name for j in whole] == [f"{i:06d}" for i in range(len(whole))]
    assert len(whole) == 9, "with 4 shards a worker and more in hand, they go as they are"
    assert {j.kind for j in jobs[len(whole) :]} == {"part"}
    sizes = [j.parts[0].stop - j.parts[0].start for j in jobs if j.kind == "part"]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 300
    assert sum(sizes) == 3000


def test_no_shard_is_cut_smaller_than_is_worth_it():
    jobs = drain(make(shards(MIN_PART_ROWS), workers=64))
    assert [j.kind for j in jobs] == ["whole"]
    jobs = drain(make(shards(100), workers=64))
    assert all(j.parts[0].stop - j.parts[0].start >= MIN_PART_ROWS // 2 for j in jobs)


def test_parts_are_joined_once_all_are_there():
    scheduler = make(shards(200), workers=1)
    parts = drain(scheduler)
    assert len(parts) == 2 and not scheduler.has_jobs
    scheduler.done(parts[1], committed(parts[1].shard), 0.0)
    assert scheduler.next(0.0) is None
    scheduler.done(parts[0], committed(parts[0].shard), 0.0)
    join = scheduler.next(0.0)
    assert join.kind == "join"
    assert [(p.start, p.stop) for p in join.parts] == [(0, 100), (100, 200)]
    assert not scheduler.results
    scheduler.done(join, committed(join.shard), 0.0)
    assert scheduler.results and not scheduler.has_jobs


def test_a_part_that_keeps_failing_is_joined_as_failed():
    scheduler = make(shards(200), workers=1, max_failures=2)
    first, second = drain(scheduler)
    scheduler.done(first, committed(first.shard), 0.0)
    assert not scheduler.failed(second, "died")
    assert scheduler.next(0.0) == second
    assert not scheduler.failed(second, "died again")
    join = scheduler.next(0.0)
    assert [p.error for p in join.parts] == [None, "died again"]


@pytest.mark.parametrize("kind", ["whole", "join", "retry"])
def test_a_job_that_keeps_failing_is_given_up(kind):
    scheduler = make(shards(20 if kind != "join" else 200), workers=1, passes=2, max_failures=3)
    job = scheduler.next(0.0)
    if kind == "join":
        for part in [job, *drain(scheduler)]:
            scheduler.done(part, committed(part.shard), 0.0)
        job = scheduler.next(0.0)
    if kind == "retry":
        scheduler.done(job, committed(job.shard, transient=1), 0.0)
        job = scheduler.next(100.0)
    assert job.kind == kind
    assert [scheduler.failed(scheduler.next(0.0) if i else job, "died") for i in range(3)] == [
        *(False, False, True)
    ]
    scheduler.given_up(job.shard, committed(job.shard, failed=True, transient=3))
    assert not scheduler.has_jobs, "one that failed is left to the next ingest"
    assert scheduler.statuses == Counter(ok=job.shard.spec.rows - 3, timeout=3)


def test_passes_come_when_it_is_time_and_no_more_than_asked_for():
    scheduler = make(shards(10, 10), passes=3, wait=8.0)
    first, second = drain(scheduler)
    scheduler.done(first, committed(first.shard, transient=4), 100.0)
    scheduler.done(second, committed(second.shard), 100.0)
    assert scheduler.has_jobs and scheduler.next(107.9) is None
    assert scheduler.seconds_to_wait(107.0) == pytest.approx(1.0)
    retry = scheduler.next(108.0)
    assert (retry.kind, retry.shard) == ("retry", first.shard)
    scheduler.done(retry, committed(first.shard, transient=2, passes=2), 110.0)
    assert scheduler.statuses == Counter(ok=18, timeout=2)
    assert scheduler.next(125.9) is None, "twice as long before the third"
    retry = scheduler.next(126.0)
    scheduler.done(retry, committed(first.shard, transient=1, passes=3), 130.0)
    assert not scheduler.has_jobs and scheduler.seconds_to_wait(0.0) is None
    assert scheduler.statuses == Counter(ok=19, timeout=1)


def test_what_is_found_counts_and_its_failures_are_gone_over_at_once():
    one, two = shards(10, 10)
    found = [(one, committed(one, transient=2)), (two, committed(two, transient=2, passes=3))]
    scheduler = make([], found, passes=3)
    (retry,) = drain(scheduler)
    assert retry.shard == one and scheduler.statuses == Counter(ok=16, timeout=4)


@given(
    rows=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    workers=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_whatever_happens_every_row_is_made_once_and_all_ends(rows, workers, seed):
    """Jobs end in any order, some fail, some leave transient failures."""
    draw, now = random.Random(seed), 0.0
    scheduler = make(shards(*rows), workers=workers, passes=2, max_failures=2)
    in_flight, made = [], {}
    for _ in range(10_000):
        while len(in_flight) < workers and (job := scheduler.next(now)):
            in_flight.append(job)
        if not in_flight:
            if not scheduler.has_jobs:
                break
            now += scheduler.seconds_to_wait(now)
            continue
        job = in_flight.pop(draw.randrange(len(in_flight)))
        if draw.random() < 0.2:
            if scheduler.failed(job, "died"):
                scheduler.given_up(job.shard, committed(job.shard, failed=True))
            continue
        passes = 2 if job.kind == "retry" else 1
        transient = draw.randrange(job.shard.spec.rows) if draw.random() < 0.5 else 0
        if job.kind in ("whole", "part"):
            spans = [(p.start, p.stop) for p in job.parts] or [(0, job.shard.spec.rows)]
            made.setdefault(job.shard.spec.name, []).extend(spans)
        scheduler.done(job, committed(job.shard, transient=transient, passes=passes), now)
    assert not scheduler.has_jobs and len(scheduler.results) == len(rows)
    assert scheduler.statuses.total() == sum(rows)
    for i, count in enumerate(rows):
        result = scheduler.results["s", f"{i:06d}"]
        spans = sorted(made.get(f"{i:06d}", []))
        covered = [row for start, stop in spans for row in range(start, stop)]
        assert len(covered) == len(set(covered)), "a row was made twice"
        assert result.failed or covered == list(range(count)) or len(covered) < count
