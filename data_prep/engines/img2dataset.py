"""img2dataset as an engine: its Downloader on the rows of a shard, in a process that is not ours to lose.

docs/ingest.md says what it does differently. It opens many threads, decodes whatever comes, and may die or
hang; so it runs in a child process with an environment, memory and time of its own, which tells of each
row as it ends. A child that is lost is followed by another one for the rows that are left.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import pyarrow as pa

from data_prep.config import IngestConfig, SourceConfig
from data_prep.engines.img2dataset_settings import check_settings
from data_prep.errors import ConfigError
from data_prep.fetch.failures import FetchError
from data_prep.fetch.target import parse_target
from data_prep.outcome import Outcome
from data_prep.python_path import python_path
from data_prep.schema import Status

CHILD = "data_prep.engines.img2dataset_child"
START_SECONDS = 60.0  # for the child's imports
LOOKUP_SECONDS = 30.0  # a name's, at most, which no timeout of Python bounds
_DECODE_SECONDS = 1.0  # an image's share in the time of a shard
_MESSAGE_BYTES = 1 << 20
_IMAGE_BYTES = 1 << 30
# What a child needs of our environment: no credentials, and no proxy that would connect for it.
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TZ")
_KEPT_VARIABLES += ("SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONHASHSEED")


def process(
    rows: pa.Table, config: IngestConfig, source: SourceConfig, put: Callable[[int, Outcome], None]
) -> None:
    """Fetches and encodes the rows that have not ended yet.

    Args:
        rows: columns url, expected and status (set: the row has ended).
        config: the ingest section.
        source: what the rows are of.
        put: called once for every such row with its place among the rows, in any order.

    Raises:
        ConfigError: settings that this engine cannot honour, or its package is missing.
    """
    problems = check_settings(config)
    if problems:
        raise ConfigError(problems)
    left: dict[int, tuple[str, str | None]] = {}
    columns = (rows[name].to_pylist() for name in ("url", "expected", "status"))
    for i, (url, expected, status) in enumerate(zip(*columns, strict=True)):
        if status is not None:
            continue
        try:
            left[i] = (str(parse_target(url)), expected)
        except FetchError as error:
            put(i, Outcome(error.status, str(error)))
    end = time.monotonic() + shard_seconds(config, len(left))
    while left:
        before = len(left)
        lost = _run_child(left, config, source.verify, end, put)
        if lost.decoding is not None:
            del left[lost.decoding]
            put(lost.decoding, lost.outcome)
        if lost.is_final or len(left) == before:
            for i in left:
                put(i, lost.outcome)
            return


def shard_seconds(config: IngestConfig, rows: int) -> float:
    """How long a shard may take: rows that all time out, images that all take long."""
    download = config.download
    rounds = ceil(rows / download.concurrency) * (download.retries + 1)
    return START_SECONDS + rounds * download.timeout_seconds + rows * _DECODE_SECONDS


@dataclass(frozen=True)
class _Lost:
    """How a child ended that has not told of all rows.

    Attributes:
        outcome: of the row that it was decoding, or else of all that are left.
        decoding: that row.
        is_final: whether no other child is worth a try.
    """

    outcome: Outcome
    decoding: int | None = None
    is_final: bool = False


def _run_child(
    left: dict[int, tuple[str, str | None]],
    config: IngestConfig,
    verify: str,
    end: float,
    put: Callable[[int, Outcome], None],
) -> _Lost:
    """Runs one child; rows that it tells of are put, and taken from `left`."""
    places = [*left]
    with tempfile.TemporaryDirectory(prefix="roseate-img2dataset-") as name:
        folder = Path(name)
        _write_job(folder, [*left.values()], config, verify)
        with _child(folder, config, end) as (child, connection):
            decoding, patience = None, START_SECONDS
            try:
                while left and connection.poll(patience):
                    message = json.loads(connection.recv_bytes(_MESSAGE_BYTES))
                    if "decoding" in message:
                        decoding = places[message["decoding"]]
                        patience = config.decode.timeout_seconds
                        continue
                    i = places[message["row"]]
                    fields = message["outcome"]
                    outcome = Outcome(**fields | {"status": Status(fields["status"])})
                    if outcome.status is Status.OK:
                        outcome.data = connection.recv_bytes(_IMAGE_BYTES)
                    if left.pop(i, None) is not None:
                        put(i, outcome)
                    decoding, patience = None, _patience(config)
                stalled = bool(left)
                child.kill()  # what it does at its end takes time, and tells nothing
            except EOFError:
                stalled = False
            except (OSError, ValueError, LookupError, TypeError):
                stalled = False  # cut off within a message, or nonsense of a child gone wrong
                child.kill()
            code = child.wait()
        return _explain_end(folder, code, decoding, stalled, time.monotonic() >= end)


def _explain_end(folder: Path, code: int, decoding: int | None, stalled: bool, late: bool) -> _Lost:
    if late:
        text = "the time of the shard was up; it was being fetched or waited its turn"
        return _Lost(Outcome(Status.TIMEOUT, text, transient=True), is_final=True)
    if decoding is not None:
        status = Status.DECODER_TIMEOUT if stalled else Status.DECODER_CRASHED
        how = "took too long over this image" if stalled else f"died over this image ({code})"
        return _Lost(Outcome(status, f"img2dataset {how}"), decoding)
    if stalled:
        text = "img2dataset came to a halt; this row was being fetched or waited its turn"
        return _Lost(Outcome(Status.TIMEOUT, text, transient=True), is_final=True)
    if code == 0:
        text = "img2dataset told nothing of this row"
        return _Lost(Outcome(Status.INTERNAL_ERROR, text, transient=True), is_final=True)
    lines = (folder / "stderr").read_text(errors="replace").strip().splitlines()
    text = f"img2dataset ended with {code}: {lines[-1][:300] if lines else 'no message'}"
    return _Lost(Outcome(Status.INTERNAL_ERROR, text, transient=True))


def _patience(config: IngestConfig) -> float:
    """Seconds without any news after which a child has come to a halt."""
    download = config.download
    return (download.retries + 1) * (download.timeout_seconds + LOOKUP_SECONDS)


def _write_job(
    folder: Path, rows: list[tuple[str, str | None]], config: IngestConfig, verify: str
) -> None:
    columns = {"url": pa.array([f"{url}#{k}" for k, (url, _) in enumerate(rows)], pa.string())}
    if verify != "none":
        columns[verify] = pa.array([expected for _, expected in rows], pa.string())
    table = pa.table(columns)
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as file:
        file.write_table(table)
    job = {"rows": len(rows), "verify": verify, "config": config.model_dump(mode="json")}
    (folder / "job.json").write_text(json.dumps(job))


@contextmanager
def _child(
    folder: Path, config: IngestConfig, end: float
) -> Iterator[tuple[subprocess.Popen, Connection]]:
    """Yields a running child and where its messages come; both are gone afterwards."""
    ours, its = Pipe(duplex=False)
    with ours, (folder / "stderr").open("wb") as errors:
        with its:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", CHILD, str(folder), str(its.fileno())],
                stdin=subprocess.PIPE,  # it ends when this closes, also if we are killed
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[its.fileno()],
                env=_environment(folder, config),
                cwd=folder,
            )
        timer = threading.Timer(max(0.0, end - time.monotonic()), child.kill)
        timer.start()
        try:
            yield child, ours
        finally:
            timer.cancel()
            child.kill()
            child.wait()
            child.stdin.close()


def _environment(folder: Path, config: IngestConfig) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONPATH": python_path(),
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(config.filter.max_pixels),  # asked before it decodes
        "MALLOC_ARENA_MAX": "2",
        # Packages that img2dataset imports would call home.
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "WANDB_MODE": "disabled",
        "WANDB_ERROR_REPORTING": "false",
    }
