"""A whole ingest in a process of its own, which may be killed anywhere."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from data_prep.storage import Folder

REPOSITORY = Path(__file__).resolve().parents[2]


def write_config(path: Path, ingest: dict) -> Path:
    """A run's YAML file that holds an ingest and tracks nothing."""
    run = {"root": str(path.parent), "ingest": ingest, "tracking": {"uri": ""}}
    path.write_text(yaml.safe_dump(run))
    return path


class IngestProcess:
    """`roseate ingest` as a child of its own session, with its Ray."""

    def __init__(self, config: Path, log: Path) -> None:
        command = [sys.executable, "-m", "pipeline", "ingest", str(config)]
        self._log = log.open("ab")
        self.driver = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=self._log,
            stderr=self._log,
            env=os.environ | {"RAY_gcs_server_request_timeout_seconds": "5"},
            start_new_session=True,
        )

    def workers(self) -> list[int]:
        """Processes that run its tasks, or decode for them."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if command.startswith(b"ray::_run") or b"data_prep.image" in command:
                    found.append(pid)
        return found

    def processes(self) -> list[int]:
        """All processes below the driver, itself left out."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.driver.pid).children(recursive=True)
            return sorted(child.pid for child in children)
        return []

    def kill_driver(self) -> None:
        """Nothing of it is told to end: its workers have to find out for themselves."""
        left, workers = self.processes(), self.workers()
        self.driver.kill()
        self.driver.wait()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "workers outlived the driver for a minute"
            time.sleep(0.1)
        for pid in left:  # Ray's agents wait longer for a raylet that is gone
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()
        self._log.close()


def files_of(url: str, suffix: str) -> dict[str, bytes]:
    """Files below a folder or URL, by name."""
    folder = Folder(url, "test")
    return {name: folder.read(name) for name in folder.names(suffix)}
