"""What a run has to tell its tracker, on disk before anything is sent: one JSON line a record.

    {folder}/spool.jsonl       records of the training, in order; `{folder}/node_{i}.jsonl` of the nodes
    {folder}/files/            pictures, tables and reports that records name, until they are sent
    {folder}/state.json        the sender's: how far it is, the MLflow run, what is wrong with the server

A record is written by one call of the operating system, so that a killed run leaves whole lines and at most one
torn one, which the next start ends. The caller never waits for a network, and what is here is not lost: the
sender (`pipeline.tracking.sender`) takes it from here, now, at the next start, or by `roseate tracking send`.
Where the disk takes no more, records are lost and counted, and the run goes on.
"""

import errno
import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.storage import write_file

SPOOL, STATE, FILES = "spool.jsonl", "state.json", "files"


class Spool:
    """Appends records; safe to use from several threads.

    Args:
        folder: of the spool, made if need be.
        name: of the file in it.

    Attributes:
        lost: records that the disk did not take.
        error: why it did not take the last of them.
    """

    def __init__(self, folder: Path, name: str = SPOOL) -> None:
        self.folder = folder
        self.lost, self.error = 0, ""
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        self._file = os.open(folder / name, flags, 0o644)
        size = self.size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # torn by a killed run
        self._lock = threading.Lock()

    def append(self, kind: str, **record: object) -> None:
        """Write a record; `t` is the time of the call, milliseconds since 1970."""
        row = {"kind": kind, "t": int(time.time() * 1000), **record}
        line = json.dumps(row, separators=(",", ":"), default=str).encode() + b"\n"
        with self._lock:
            size = self.size
            try:
                if os.write(self._file, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                os.ftruncate(self._file, size)  # half a line would spoil the next
                self._lose(error)

    def append_file(self, kind: str, data: bytes | Path, **record: object) -> None:
        """Write a record with bytes, or with the present content of a file, kept until they are sent."""
        folder, name = self.folder / FILES, uuid.uuid4().hex
        try:
            folder.mkdir(exist_ok=True)
            if isinstance(data, Path):
                shutil.copyfile(data, folder / name)
            else:
                (folder / name).write_bytes(data)
        except OSError as error:
            (folder / name).unlink(missing_ok=True)
            with self._lock:
                self._lose(error)
            return
        self.append(kind, kept=name, **record)

    def _lose(self, error: OSError) -> None:
        if not self.lost:
            print(
                f"roseate: {self.folder} takes no more records ({error.strerror})", file=sys.stderr
            )
        self.lost, self.error = self.lost + 1, error.strerror

    @property
    def size(self) -> int:
        """Bytes of its file."""
        return os.fstat(self._file).st_size

    def cut(self, size: int) -> None:
        """Take back what came behind so many bytes, which no sender may have begun with."""
        with self._lock:
            os.ftruncate(self._file, size)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[dict, int]]:
    """(record, offset behind it) of the whole lines from an offset on; torn ones are passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # still being written, or torn
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield record, offset
            # A torn line is ended by the next start: no record, unless its newline alone was gone.


def last_run(folder: Path) -> dict | None:
    """The record that began the newest run of a spool, or None."""
    found = None
    for record, _ in read_records(folder / SPOOL):
        if record["kind"] == "run":
            found = record
    if found is None:
        return None
    return {k: v for k, v in found.items() if k not in ("kind", "t", "goes_on")}


def recorded_steps(folder: Path, key: str) -> dict[str, int]:
    """The last step of each curve that a spool holds of a run, as far as no rollback has left it."""
    marks: dict[str, int] = {}
    for record, _ in read_records(folder / SPOOL):
        if record["kind"] == "run" and record["key"] != key:
            marks = {}
        elif record["kind"] == "metrics":
            for name in record["values"]:
                marks[name] = max(marks.get(name, -1), record["step"])
        elif record["kind"] == "event" and record["row"]["kind"] == "rollback":
            back = json.loads(record["row"]["details"])["to_step"]
            marks = {name: min(step, back) for name, step in marks.items()}
    return marks


@dataclass
class SenderState:
    """How far the sender is.

    Attributes:
        offsets: file of the spool to the bytes of it that are sent.
        key: of the run that the last sent `run` record began.
        run_id: its MLflow run.
        experiment_id: that it is in.
        url: where a person sees it; None for a store without a server.
        error: what the last request failed with, None when it did not.
        is_refused: whether it failed at a run that the store will never take.
        rejected: records that the store will never take.
        changed: when it was written, seconds since 1970.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    key: str | None = None
    run_id: str | None = None
    experiment_id: str | None = None
    url: str | None = None
    error: str | None = None
    is_refused: bool = False
    rejected: int = 0
    changed: float = 0.0

    @classmethod
    def load(cls, folder: Path) -> "SenderState":
        """That of a spool; a new one where nothing was sent."""
        try:
            return cls(**json.loads((folder / STATE).read_text()))
        except FileNotFoundError:
            return cls()

    def save(self, folder: Path) -> None:
        """Write it whole."""
        self.changed = time.time()
        write_file(folder / STATE, json.dumps(vars(self)).encode())


def spool_files(folder: Path) -> list[str]:
    """Names of the files with records, the training's first: it makes the run that the nodes' go to."""
    return [SPOOL, *sorted(path.name for path in folder.glob("node_*.jsonl"))]


def unsent(folder: Path) -> int:
    """Records of a spool that have not been sent."""
    state = SenderState.load(folder)
    return sum(
        1
        for name in spool_files(folder)
        for _ in read_records(folder / name, state.offsets.get(name, 0))
    )
