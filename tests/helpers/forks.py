"""Processes that begin at once, forked from `tests.helpers.fork_server`; as good as new ones otherwise.

They compute on the CPU with one thread, whatever the machine has.
"""

import atexit
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from data_prep.ports import held_port

REPOSITORY = Path(__file__).resolve().parents[2]
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
SECONDS_TO_FAIL = 20.0


class Forked:
    """A process.

    Attributes:
        pid: its process id.
    """

    def __init__(self, told: socket.socket) -> None:
        self._told = told.makefile("rb")
        self.pid = int(self._told.readline())
        self._socket, self._code = told, None

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        try:
            return self.wait(0.0)
        except TimeoutError:
            return None

    def wait(self, seconds: float | None = None) -> int:
        """Wait for its end; its exit code, or minus the signal that ended it.

        Raises:
            TimeoutError: it runs on.
        """
        if self._code is None:
            ended, *_ = select.select([self._socket], [], [], seconds)
            if not ended:
                raise TimeoutError(f"process {self.pid} runs on")
            self._code = int(self._told.readline())
            self._told.close()
            self._socket.close()
        return self._code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def fork(
    function: Callable,
    *arguments: object,
    environment: dict[str, str] | None = None,
    folder: Path = REPOSITORY,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Forked:
    """Run a function of a module in a process of its own.

    Args:
        environment: more of it, besides what this process has.
        folder: that it runs in.
        stdout, stderr: descriptors for what it prints, by default those of this process.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        out, err = (1 if stdout is None else stdout), (2 if stderr is None else stderr)
        socket.send_fds(_server(), [b"."], [theirs.fileno(), out, err])
    whole = dict(os.environ) | ON_CPU | (environment or {})
    ours.sendall(pickle.dumps((whole, str(folder), function, arguments)))
    return Forked(ours)


def fork_group(
    function: Callable, processes: int, *arguments: object, **options: object
) -> dict[int, int]:
    """`fork` for each rank of one gloo group, to the end of all; rank to exit code, the first to end first.

    Where one fails, the others are killed once they have had time to fail too.
    """
    with held_port() as port:
        running = {
            rank: fork(
                function, *arguments, environment=rank_environment(rank, processes, port), **options
            )
            for rank in range(processes)
        }
        codes: dict[int, int] = {}
        deadline = None
        while running:
            for rank in [rank for rank, process in running.items() if process.poll() is not None]:
                codes[rank] = running.pop(rank).wait()
            if deadline is None and any(codes.values()):
                deadline = time.monotonic() + SECONDS_TO_FAIL
            if deadline and time.monotonic() > deadline:
                for process in running.values():
                    process.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        return codes


def rank_environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What tells a process that it is this rank of a group on loopback."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@cache
def _server() -> socket.socket:
    """The one of this process, started when it is first needed."""
    ours, theirs = socket.socketpair()
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.fork_server", str(theirs.fileno())],
            env=os.environ | ON_CPU,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def stop() -> None:
        ours.close()
        server.wait()

    atexit.register(stop)
    return ours
