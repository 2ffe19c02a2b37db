"""The Ray cluster that the jobs run on, one of its own or one that is there; the only user of Ray."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray

from data_prep.config import RayConfig
from data_prep.ingest.commit import Committed
from data_prep.ingest.job import Job, run_job
from data_prep.python_path import python_path

_OBJECT_STORE_BYTES = 100_000_000  # shards go to files, never through the object store
_ANSWER_SECONDS = 2.0


class _Tally:
    """What the tasks in flight have told: rows by status for each job."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, int]] = {}

    def tell(self, name: str, statuses: dict[str, int]) -> None:
        self._told[name] = statuses

    def forget(self, name: str) -> None:
        self._told.pop(name, None)

    def told(self) -> dict[str, dict[str, int]]:
        return self._told


def _warm_up() -> None:
    """Nothing; but the worker has then imported what a job needs, and keeps it out of the collector."""
    gc.freeze()


def _run(job: Job, tally) -> Committed:
    def tell(name: str, statuses: dict[str, int]) -> None:
        tally.tell.remote(name, statuses)

    return run_job(job, tell)


class JobError(Exception):
    """A job that failed, or whose worker or node died."""

    def __init__(self, error: BaseException) -> None:
        text = str(error).strip().splitlines()
        super().__init__(text[-1] if text else type(error).__name__)
        # What the job itself raised; None where its process died.
        self.cause = getattr(error, "cause", None)


class Cluster:
    """Runs jobs, each on one CPU. Nothing is tried again here: who asks decides that."""

    def __init__(self, config: RayConfig) -> None:
        self._config = config
        # On this node: one that is lost must not take it along.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        self._tally = ray.remote(num_cpus=0)(_Tally).options(scheduling_strategy=here).remote()
        self._task = ray.remote(num_cpus=1, max_retries=0)(_run)
        self._jobs: dict[ray.ObjectRef, Job] = {}

    @property
    def workers(self) -> int:
        """Jobs that may be in flight; nodes may come and go."""
        cpus = int(ray.cluster_resources().get("CPU", 1))
        return max(1, min(self._config.num_workers or cpus, cpus))

    def warm_up(self) -> None:
        """Wait until there are workers, all of which have imported what a job needs."""
        task = ray.remote(num_cpus=1, max_retries=0)(_warm_up)
        ray.wait([task.remote() for _ in range(self.workers)], num_returns=self.workers)

    @property
    def in_flight(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        self._jobs[self._task.remote(job, self._tally)] = job

    def wait(self, seconds: float) -> Iterator[tuple[Job, Committed | JobError]]:
        """Jobs that have ended, at the latest after so many seconds."""
        if not self._jobs:
            return
        ended, _ = ray.wait([*self._jobs], num_returns=1, timeout=seconds)
        for reference in ended:
            job = self._jobs.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                result = JobError(error)
            self._tally.forget.remote(job.label)
            yield job, result

    def told(self) -> dict[str, dict[str, int]]:
        """Rows by status so far, for the jobs in flight; empty where nobody answers."""
        with suppress(ray.exceptions.RayError):
            return ray.get(self._tally.told.remote(), timeout=_ANSWER_SECONDS)
        return {}


@contextmanager
def open_cluster(config: RayConfig) -> Iterator[Cluster]:
    """Starts a local Ray, or joins the one at `config.address`; ends only what it started."""
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: dict[str, object] = {"address": config.address or "local"}
        if config.address is None:
            options |= {
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "num_cpus": config.num_workers,
            }
        with importable_by_workers():
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
    try:
        cluster = Cluster(config)
        if started and config.address is None:
            cluster.warm_up()  # so that the figures are of the work
        yield cluster
    finally:
        if started:
            ray.shutdown()


@contextmanager
def importable_by_workers() -> Iterator[None]:
    """Puts this package on the path of the worker processes, however it was found here."""
    former = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = python_path()
    try:
        yield
    finally:
        if former is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = former
