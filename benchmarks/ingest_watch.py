"""What a running command takes, seen from outside: processor time, and memory of its workers (Linux)."""

import os
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import process_stats

_SECONDS_BETWEEN_SAMPLES = 0.2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class Watch:
    """Samples /proc while the context is open.

    Args:
        root: process id of the command.
        is_worker: from a command line, whether that process is a worker.

    Attributes:
        peak_bytes: resident memory that one worker held at most, with the processes that it has
            started; pages that they share count for each.
        cpu_seconds: processor time of all processes of the command so far.
    """

    def __init__(self, root: int, is_worker: Callable[[str], bool]) -> None:
        self.peak_bytes = 0
        self._root, self._is_worker = root, is_worker
        self._ticks: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def cpu_seconds(self) -> float:
        return sum(self._ticks.values()) / _TICKS

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_SAMPLES):
            children, ticks = _processes()
            for process in _family(self._root, children):
                if process in ticks:
                    self._ticks[process] = ticks[process]
                if self._is_worker(_command_line(process)):
                    total = sum(_resident(p) for p in _family(process, children))
                    self.peak_bytes = max(self.peak_bytes, total)


def _processes() -> tuple[dict[int, list[int]], dict[int, int]]:
    """Children, and ticks of processor time without those of ended children, by process."""
    children, ticks = defaultdict(list), {}
    for process, fields in process_stats():
        children[int(fields[1])].append(process)
        ticks[process] = int(fields[11]) + int(fields[12])
    return children, ticks


def _family(root: int, children: dict[int, list[int]]) -> list[int]:
    family = [root]
    for process in family:
        family += children.get(process, [])
    return family


def _command_line(process: int) -> str:
    try:
        line = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return ""
    return line.replace(b"\0", b" ").decode(errors="replace")


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0
