"""How far an indexing is: a bar on a terminal, a line now and then in a log file; on standard error."""

import sys
import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class IndexProgress:
    """Use as a context manager; what it gives is `advance` of `index_folder`."""

    def __init__(self) -> None:
        self._lines = not sys.stderr.isatty()
        self._told = time.monotonic()
        self._bar = Progress(
            TextColumn("index"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tars  {task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=self._lines,
        )
        self._task = self._bar.add_task("index", total=None, note="")

    def __enter__(self) -> "IndexProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, statuses: Counter) -> None:
        """Tars done, tars in all, samples by status."""
        samples = statuses.total()
        note = f"{samples} samples, {100 * statuses['ok'] / max(1, samples):.1f}% ok"
        self._bar.update(self._task, completed=done, total=total, note=note)
        now = time.monotonic()
        if self._lines and (now - self._told >= SECONDS_BETWEEN_LINES or done == total):
            self._told = now
            print(f"index: tar {done}/{total}, {note}", file=sys.stderr, flush=True)
