"""Which task next: shards in order, their parts near the end, transient failures again when it is time.

Near the end shards are cut into parts of what remains divided by twice the workers (guided
self-scheduling, Polychronopoulos and Kuck 1987), so that no worker is idle while another has a whole
shard before it. What a shard holds does not depend on it.
"""

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from data_prep.ingest.commit import Committed
from data_prep.ingest.job import Job, Part, Shard

MIN_PART_ROWS = 32


@dataclass
class _Cut:
    """A shard that several tasks make."""

    shard: Shard
    num_parts: int
    parts: dict[int, Part] = field(default_factory=dict)  # that have ended, by first row


class Scheduler:
    """Gives jobs, and is told how they end.

    Attributes:
        results: what each shard is, by source and name.
        statuses: rows of all these shards, by status.

    Args:
        shards: every shard to make, in order.
        found: shards that are there already, with what they are.
        workers: tasks in flight, at most; it may be set anew at any time.
        passes: over transient failures, the first one included.
        wait_seconds: before the second pass over a shard, doubled for each further one.
        max_failures: after so many a job is given up.
    """

    def __init__(
        self,
        shards: Iterable[Shard],
        found: Iterable[tuple[Shard, Committed]] = (),
        *,
        workers: int,
        passes: int,
        wait_seconds: float,
        max_failures: int,
    ) -> None:
        self.workers = workers
        self.results: dict[tuple[str, str], Committed] = {}
        self.statuses: Counter = Counter()
        self._fresh = deque(shards)
        self._fresh_rows = sum(shard.spec.rows for shard in self._fresh)
        self._ready: deque[Job] = deque()
        self._cuts: dict[tuple[str, str], _Cut] = {}
        self._failures: Counter = Counter()
        self._passes, self._wait, self._max_failures = passes, wait_seconds, max_failures
        self._due: list[tuple[float, int, Job]] = []
        self._count = itertools.count()  # jobs are not ordered themselves
        for shard, committed in found:
            # Found again, it has waited long enough.
            self._settle(shard, committed, due=0.0)

    def next(self, now: float) -> Job | None:
        """A job that can begin now; None when there is none.

        Args:
            now: seconds of a clock that goes on, the same one at every call.
        """
        if self._ready:
            return self._ready.popleft()
        if self._due and self._due[0][0] <= now:
            return heapq.heappop(self._due)[2]
        if not self._fresh:
            return None
        shard = self._fresh.popleft()
        rows = shard.spec.rows
        size = max(MIN_PART_ROWS, -(-self._fresh_rows // (2 * self.workers)))
        self._fresh_rows -= rows
        count = -(-rows // size)
        if count == 1:
            return Job(shard, "whole")
        bounds = [rows * i // count for i in range(count + 1)]
        parts = [Part(*pair) for pair in itertools.pairwise(bounds)]
        self._cuts[_key(shard)] = _Cut(shard, count)
        self._ready.extend(Job(shard, "part", (part,)) for part in parts)
        return self._ready.popleft()

    def seconds_to_wait(self, now: float) -> float | None:
        """Until the next job that is due later; None where there is none."""
        return max(0.0, self._due[0][0] - now) if self._due else None

    @property
    def has_jobs(self) -> bool:
        """Whether any job has not been given yet."""
        return bool(self._ready or self._due or self._fresh)

    def done(self, job: Job, result: Committed, now: float) -> None:
        """The job is done; `result` is what `run_job` returned."""
        if job.kind == "part":
            self._part_ended(job, job.parts[0])
        else:
            self._settle(job.shard, result, now + self._wait * 2 ** (result.passes - 1))

    def failed(self, job: Job, error: str) -> bool:
        """The job has failed; True: it is given up, and the caller says what its shard is now."""
        self._failures[job.label] += 1
        if self._failures[job.label] < self._max_failures:
            self._ready.append(job)
            return False
        if job.kind == "part":
            self._part_ended(job, Part(job.parts[0].start, job.parts[0].stop, error))
            return False
        return True

    def given_up(self, shard: Shard, result: Committed) -> None:
        """What the shard of a job that was given up is now."""
        self._record(shard, result)

    def _part_ended(self, job: Job, part: Part) -> None:
        cut = self._cuts[_key(job.shard)]
        cut.parts[part.start] = part
        if len(cut.parts) == cut.num_parts:
            parts = tuple(part for _, part in sorted(cut.parts.items()))
            self._ready.appendleft(Job(cut.shard, "join", parts))
            del self._cuts[_key(job.shard)]

    def _record(self, shard: Shard, result: Committed) -> None:
        former = self.results.get(_key(shard))
        if former is not None:
            self.statuses.subtract(former.statuses)
        self.statuses.update(result.statuses)
        self.results[_key(shard)] = result

    def _settle(self, shard: Shard, result: Committed, due: float) -> None:
        self._record(shard, result)
        if result.transient and result.passes < self._passes and not result.failed:
            heapq.heappush(self._due, (due, next(self._count), Job(shard, "retry")))


def _key(shard: Shard) -> tuple[str, str]:
    return shard.source, shard.spec.name
