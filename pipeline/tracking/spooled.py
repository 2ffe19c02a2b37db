"""A run told to MLflow by way of a spool: nothing waits for a server, and nothing is lost without one."""

import io
import json
import sys
import time
import uuid
from dataclasses import asdict
from pathlib import Path

from data_prep.errors import ConfigError
from pipeline.config import IngestRunConfig, flatten
from pipeline.tracking.environment import run_tags
from pipeline.tracking.parent import parent_of
from pipeline.tracking.secrets import redact, redact_all
from pipeline.tracking.sender import REJECTED
from pipeline.tracking.sender_process import SenderProcess
from pipeline.tracking.server import check_uri, refused
from pipeline.tracking.spool import SenderState, Spool, last_run, recorded_steps, unsent
from pipeline.tracking.tracker import START_SECONDS

STOPPED_SECONDS = 10.0  # for the rest of the records, where the run is to go on
TEXTS = {".yaml", ".yml", ".json", ".txt", ".md"}
_REMEDY = "correct the path; restore a deleted experiment, or name another: tracking.experiment"


class SpooledTracker:
    """One MLflow run, by way of a spool that a process of its own sends.

    Args:
        config: section `tracking` says where to; its dotted names become the run's parameters.
        folder: of the spool.

    Attributes:
        sender: the process that sends.

    Raises:
        ConfigError: tracking.uri will not work.
    """

    def __init__(self, config: IngestRunConfig, folder: Path) -> None:
        tracking = config.tracking
        self._trouble = check_uri(tracking.uri)
        self._config, self._folder = config, folder
        self._spool: Spool | None = None
        self.key: str | None = None
        self._run_id: str | None = None
        self._told_id: str | None = None
        self._marks: dict[str, int] = {}
        self.sender = SenderProcess(folder, tracking.uri, tracking.wait_seconds)

    @property
    def run_id(self) -> str | None:
        if self._run_id is None:
            state = SenderState.load(self._folder)
            self._run_id = state.run_id if state.key == self.key else None
        # Until the server says otherwise, which may have lost it.
        return self._run_id or self._told_id

    @property
    def url(self) -> str | None:
        """Where a person sees the run, where a server shows it and the run is known."""
        state = SenderState.load(self._folder)
        return state.url if state.key == self.key else None

    def begin(self, name, *, goes_on=False, run_id=None, parent=None, start_seconds=START_SECONDS):
        tracking, root = self._config.tracking, Path(self._config.root)
        spool = self._spool = Spool(self._folder)
        size, began = spool.size, time.time()
        begun = last_run(self._folder) if goes_on else None
        run = begun or {
            "key": uuid.uuid4().hex,
            "name": name,
            "experiment": tracking.experiment,
            "artifacts": (root / "mlartifacts").absolute().as_uri(),
            "run_id": run_id if goes_on else None,
            "parent": {"run_id": parent} if parent else parent_of(root),
            "tags": run_tags(),
            "uri": redact(tracking.uri),
        }
        self.key, self._told_id = run["key"], run["run_id"]
        if begun:
            self._marks = recorded_steps(self._folder, self.key)
        spool.append("run", **run | {"goes_on": begun is not None})
        if begun is None:
            spool.append("params", values=redact_all(flatten(self._config)))
        self.sender.begin()
        try:
            self._await_run(began, start_seconds)
        except ConfigError:
            spool.cut(size)  # or the next run would wait behind this one
            self._close()
            raise

    def metrics(self, values, step):
        # What a restart computes again is there already.
        new = {k: float(v) for k, v in values.items() if step > self._marks.get(k, -1)}
        if new:
            self._spool.append("metrics", step=step, values=new)

    def picture(self, image, name):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        self._file("file", buffer.getvalue(), name)

    def table(self, rows, name):
        columns = list(rows)
        data = [list(row) for row in zip(*rows.values(), strict=True)]
        text = json.dumps(redact_all({"columns": columns, "data": data}), default=str)
        self._file("table", text.encode(), name)

    def file(self, path, folder=None):
        content: bytes | Path = path
        if path.suffix in TEXTS:
            content = redact(path.read_text()).encode()
        self._file("file", content, f"{folder}/{path.name}" if folder else path.name)

    def tags(self, values):
        self._spool.append("tags", values={k: redact(str(v)) for k, v in values.items()})

    def dataset(self, name, digest, source, context):
        kind = source.partition("://")[0] if "://" in source else "local"
        self._spool.append(
            "dataset",
            name=name,
            digest=digest,
            source=redact(source),
            source_type=kind,
            context=context,
        )

    def checkpoint(self, step, url, values):
        self._spool.append(
            "checkpoint",
            key=f"{self.key}/{step}",
            name=f"step_{step:06d}",
            step=step,
            url=redact(url),
            values=values,
        )

    def register(self, step, url, name, alias):
        key = f"{self.key}/{step}"
        self._spool.append("register", key=key, url=redact(url), name=name, alias=alias)

    def event(self, event):
        row = asdict(event)
        row["details"] = json.dumps(redact_all(row["details"]), default=str)
        self._spool.append("event", row=row)
        if event.kind == "rollback":
            self._marks.clear()  # what comes now has other values

    def end(self, status="FINISHED"):
        """Also waits for what is not sent: `tracking.wait_seconds` at most, less where the run goes on."""
        if self._spool is None:
            self.sender.let_go()  # why it never began is to be told first
            return
        self._spool.append("end", status=status)
        wait = self._config.tracking.wait_seconds
        self.sender.end(wait if status == "FINISHED" else min(wait, STOPPED_SECONDS))
        self._say_what_is_missing()
        self._close()

    def _close(self) -> None:
        self._spool.close()
        self._spool = None

    def _say_what_is_missing(self) -> None:
        state, command = SenderState.load(self._folder), f"tracking send {self._folder.parent}"
        if left := unsent(self._folder):
            why = f" ({state.error})" if state.error else ""
            _say(
                f"{left} records for MLflow are not sent yet{why}; they are on disk, and the next start "
                f"sends them, or: roseate {command}"
            )
        if state.rejected:
            _say(f"{state.rejected} records were refused by MLflow: {self._folder / REJECTED}")
        if lost := self._spool.lost:
            _say(
                f"{lost} records for MLflow are lost: the disk did not take them ({self._spool.error})"
            )

    def _file(self, kind: str, content: bytes | Path, name: str) -> None:
        folder, _, last = name.rpartition("/")
        self._spool.append_file(kind, content, name=last, folder=folder or None)

    def _await_run(self, began: float, seconds: float) -> None:
        """Until the run's id is known, or the server is known to be away."""
        trouble, uri = self._trouble, self._config.tracking.uri
        while trouble is None and self.run_id is None and seconds:
            state = SenderState.load(self._folder)
            if state.changed >= began and state.error:
                trouble = state.error
                if state.is_refused or uri.startswith("sqlite:"):
                    self.sender.end(0.0)
                    raise refused(uri, f"takes a run ({trouble})", _REMEDY)
            elif time.time() - began > seconds:
                trouble = f"no answer in {seconds:.0f} s"
            elif (code := self.sender.exit_code) is not None:
                trouble = f"the sender ended with exit code {code}"
            time.sleep(0.05)
        if trouble is not None:
            _say(f"MLflow at {redact(uri)} does not answer ({trouble}): the run goes on without it")
            _say(f"and keeps what it has to tell in {self._folder} until it does")


def _say(text: str) -> None:
    print(f"roseate: {text}", file=sys.stderr, flush=True)
