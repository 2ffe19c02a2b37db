"""The process that takes a run's records to MLflow, in order, each once: `python -m pipeline.tracking.sender`.

A child of the training, so that neither MLflow's import nor its requests hold the interpreter that trains. It
begins to send at a line on its standard input and ends when its parent has: by the end of that input, after it
has sent what is left, for `wait` seconds at most. One at a time works on a spool; the next waits for the lock.
"""

import fcntl
import json
import os
import select
import sys
import time
from pathlib import Path

from pipeline.tracking.secrets import redact
from pipeline.tracking.spool import FILES, SPOOL, SenderState, read_records, spool_files
from pipeline.tracking.store import MOST_POINTS, Store, get_ready

URI = "ROSEATE_TRACKING_URI"  # not an argument: every user of the machine can read those
REJECTED = "rejected.jsonl"  # in the spool's folder: what the store will never take, and why
POLL_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
# So long a record is tried again while the store fails at it and answers otherwise.
GIVE_UP_SECONDS = 300.0
# What MLflow says of a request that no repetition will make right. What a proxy in front of it says while it
# restarts comes under other codes (BAD_REQUEST, ENDPOINT_NOT_FOUND).
NEVER = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
}


class Sender:
    """Sends a spool.

    Args:
        folder: of the spool.
        uri: of MLflow.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        self.state = SenderState.load(folder)
        self.state.error = None
        self._store: Store | None = None
        self._pause = 1.0
        self._not_before = 0.0
        self._failing_since: float | None = None  # at the record that is next

    def send(self) -> bool:
        """Send what is there and may be sent now.

        Returns:
            whether everything is sent.
        """
        if time.monotonic() < self._not_before:
            return False
        while batch := self._next():
            if not self._try(*batch):
                return False
        return True

    def _next(self) -> tuple[str, list[dict], int] | None:
        """File, next record of it or as many points as go into a request, and the offset behind them."""
        for name in spool_files(self.folder):
            if batch := self._batch(name):
                return name, *batch
        return None

    def _batch(self, name: str) -> tuple[list[dict], int] | None:
        records, points = [], 0
        end = start = self.state.offsets.get(name, 0)
        for record, offset in read_records(self.folder / name, start):
            is_points = record["kind"] == "metrics"
            if records and not (is_points and points + len(record["values"]) <= MOST_POINTS):
                break
            records.append(record)
            end = offset
            if not is_points:
                break
            points += len(record["values"])
        return (records, end) if records else None

    def _try(self, name: str, records: list[dict], end: int) -> bool:
        """Send a batch; whether the next may follow."""
        taken = True
        try:
            store = self._open()
            if records[0]["kind"] == "metrics":
                store.points(records)
            else:
                store.apply(records[0])
        except Exception as error:  # whatever a server and its client come up with
            if records[0]["kind"] == "run":
                return self._note(error, is_refused=_is_final(error))
            try:
                if not self._open().has_run():
                    self._begin_anew()
                    return True
                if not _is_final(error) and not self._is_hopeless():
                    return self._note(error)
                self._reject(records, error)
                taken = False
            except Exception as later:  # the server is away now
                self._failing_since = None
                return self._note(later)
        self._go_on(name, end)
        for record in records:
            if taken and "kept" in record:
                (self.folder / FILES / record["kept"]).unlink(missing_ok=True)
        return True

    def _go_on(self, name: str, offset: int) -> None:
        self.state.offsets[name] = offset
        self.state.error, self.state.is_refused = None, False
        self._pause, self._failing_since = 1.0, None
        self.state.save(self.folder)

    def _is_hopeless(self) -> bool:
        """Whether the next record has failed long enough, with a store that was well all the time."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        return now - self._failing_since >= GIVE_UP_SECONDS

    def _begin_anew(self) -> None:
        """The store has lost the run: tell another one everything that the spool holds of it."""
        start = before = 0
        for record, offset in read_records(self.folder / SPOOL):
            if record["kind"] == "run" and record["key"] == self.state.key:
                start = before
                break
            before = offset
        self.state.run_id = self.state.url = None
        self._store = None
        self._go_on(SPOOL, start)

    def _open(self) -> Store:
        if self._store is None:
            store = Store(self.uri, self.folder, self.state)
            sent = self.state.offsets.get(SPOOL, 0)
            for record, offset in read_records(self.folder / SPOOL):
                if offset > sent:
                    break
                store.replay(record)
            self._store = store
        return self._store

    def _note(self, error: Exception, *, is_refused: bool = False) -> bool:
        """Keep what went wrong, for whoever asks, and pause; False."""
        self.state.error = redact(f"{type(error).__name__}: {error}")[:1000]
        self.state.is_refused = is_refused
        self.state.save(self.folder)
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return False

    def _reject(self, records: list[dict], error: Exception) -> None:
        """Put aside what the store will never take; of points, which come together, only those."""
        if records[0]["kind"] != "metrics":
            self._write_rejected(records[0], error)
            return
        for record in records:
            for key, value in record["values"].items():
                one = record | {"values": {key: value}}
                try:
                    self._open().points([one])
                except Exception as its_error:
                    if not _is_final(its_error) and not self._is_hopeless():
                        raise
                    self._write_rejected(one, its_error)

    def _write_rejected(self, record: dict, error: Exception) -> None:
        self.state.rejected += 1
        row = record | {"error": redact(str(error))[:500]}
        with (self.folder / REJECTED).open("a") as file:
            file.write(json.dumps(row) + "\n")


def send_all(folder: Path, uri: str, wait_seconds: float) -> bool:
    """Send what a run that has ended left, for `wait_seconds` at most; whether all of it is sent."""
    with lock(folder):
        sender, deadline = Sender(folder, uri), time.monotonic() + wait_seconds
        while not (done := sender.send()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return done


def run_sender(folder: Path, uri: str, wait_seconds: float) -> int:
    """From a line on standard input until it is closed and everything is sent, or `wait_seconds` after that.

    Returns:
        exit code: 0 when everything is sent, or nothing was to be.
    """
    get_ready(uri)
    if not os.read(sys.stdin.fileno(), 1):
        return 0
    with lock(folder):
        sender, deadline = Sender(folder, uri), None
        while True:
            done = sender.send()
            if deadline is None:
                if _is_closed(POLL_SECONDS):
                    deadline = time.monotonic() + wait_seconds
            elif done or time.monotonic() >= deadline:
                return 0 if done else 1
            else:
                time.sleep(POLL_SECONDS)


def lock(folder: Path):
    """Hold the spool's lock; use as a context manager."""
    file = (folder / "sender.lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def is_locked(folder: Path) -> bool:
    """Whether a sender is at work on a spool."""
    try:
        with (folder / "sender.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _is_final(error: Exception) -> bool:
    return getattr(error, "error_code", None) in NEVER


def _is_closed(seconds: float) -> bool:
    ready, _, _ = select.select([sys.stdin.buffer], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


def set_environment() -> None:
    """Our own repetitions, with what is on disk, in place of the client's, which lose what they hold."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")


if __name__ == "__main__":
    set_environment()
    sys.exit(run_sender(Path(sys.argv[1]), os.environ[URI], float(sys.argv[2])))
