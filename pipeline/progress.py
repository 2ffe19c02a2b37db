"""How far a run is: a bar on a terminal, a line now and then in a log file; on standard error either way."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class RunProgress:
    """Use as a context manager.

    Args:
        name: of the run.
        total: steps.
        done: steps done before this start.
        silent: show nothing, as on every rank but the first.
        unit: what is counted, where it is not steps.
    """

    def __init__(
        self, name: str, *, total: int, done: int, silent: bool, unit: str = "step"
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self._lines = not silent and not sys.stderr.isatty()
        self._began, self._first, self._told = time.monotonic(), done, time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=silent or self._lines,
        )
        self._task = self._bar.add_task(name, total=total, completed=done, note="")

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, done: int, note: str = "") -> None:
        """Steps done so far, and what else is to be seen beside them."""
        self._bar.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if self._lines and (now - self._told >= SECONDS_BETWEEN_LINES or done == self.total):
            self._told = now
            left = (now - self._began) / max(1, done - self._first) * (self.total - done)
            parts = [
                f"{self.name}: {self.unit} {done}/{self.total}",
                note,
                f"{left:.0f} s left",
            ]
            print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)
