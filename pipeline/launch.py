"""Several `roseate` processes on this machine as one group; on a cluster srun does this instead."""

import os
import signal
import subprocess
import sys
import time

from data_prep.ports import held_port

SECONDS_TO_TELL = 30.0


def run_group(arguments: list[str], processes: int) -> int:
    """Run `python -m pipeline ARGUMENTS` as so many ranks; the exit code of the first that failed, or 0.

    When one fails the others are ended, since they would wait for it in a collective for ever; but
    only after some seconds, since most mistakes stop all of them and the first rank tells which.
    SIGTERM and SIGUSR1 are passed on to all, so that they stop together.
    """
    with held_port() as port:  # rank 0 listens on it only after seconds of imports
        return _run(arguments, processes, port)


def _run(arguments: list[str], processes: int, port: int) -> int:
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    common = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }
    group = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]

    def pass_on(number: int, _: object) -> None:
        for process in group:
            process.send_signal(number)

    code, deadline = 0, None
    before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        while True:
            codes = [p.poll() for p in group]
            code = code or next((c for c in codes if c), 0)
            if None not in codes:
                return code
            if code:
                deadline = deadline or time.monotonic() + SECONDS_TO_TELL
                if time.monotonic() > deadline:
                    return code
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in group:
            if process.poll() is None:
                process.terminate()
        for process in group:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
