"""The sender as its parent holds it: it gets ready, is told to begin, and ends with the run."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from data_prep.python_path import python_path
from pipeline.tracking.sender import URI

# What a batch system tells all processes of a job is meant for the training alone.
_SIGNALS = {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class SenderProcess:
    """`pipeline.tracking.sender` on a spool. It loads MLflow at once and sends nothing before `begin`.

    Args:
        folder: of the spool, made if need be.
        uri: of MLflow.
        wait_seconds: to send what is left, once its parent has ended.
    """

    def __init__(self, folder: Path, uri: str, wait_seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pipeline.tracking.sender", str(folder), str(wait_seconds)]
        environment = os.environ | {URI: uri, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            with (folder / "sender.log").open("w") as log:
                self.process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def exit_code(self) -> int | None:
        """None while it works."""
        return self.process.poll()

    def begin(self) -> None:
        """The run is told."""
        with suppress(BrokenPipeError):  # it has ended, as `exit_code` says
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    def let_go(self) -> None:
        """Its parent is done with it: it ends when it has sent the rest, at once where it never began."""
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self, seconds: float) -> None:
        """Until it has sent the rest, for so long at most; what it is sending then the next sends again."""
        self.let_go()
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
