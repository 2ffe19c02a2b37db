"""How far an ingest is: figures, and a line of them on standard error."""

import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BETWEEN_FIGURES = 1.0
SECONDS_BETWEEN_LINES = 10.0
_WINDOW_SECONDS = 60.0  # that the speed is taken over
_ERRORS_SHOWN = 3


@dataclass(frozen=True)
class Figures:
    """Where an ingest stands.

    Attributes:
        rows: of the tables, in all.
        statuses: rows that have ended, by status; those of earlier runs included.
        made: images stored by this run.
        images_per_second: stored, over the last minute.
        rows_per_second: ended, over the last minute.
        seconds: since this run began to fetch.
    """

    rows: int
    statuses: Counter
    made: int
    images_per_second: float
    rows_per_second: float
    seconds: float

    @property
    def ended(self) -> int:
        return self.statuses.total()

    @property
    def ok_share(self) -> float:
        return self.statuses["ok"] / max(1, self.ended)

    @property
    def seconds_left(self) -> float | None:
        """None while nothing has been done to judge by."""
        left = self.rows - self.ended
        return left / self.rows_per_second if self.rows_per_second else (0.0 if not left else None)

    def line(self) -> str:
        """All of them for a person, in one line."""
        errors = [pair for pair in self.statuses.most_common() if pair[0] != "ok"][:_ERRORS_SHOWN]
        parts = [
            f"{self.images_per_second:.0f} images/s",
            f"{100 * self.ok_share:.1f}% ok",
            *(f"{status} {100 * count / self.ended:.1f}%" for status, count in errors),
        ]
        if self.seconds_left is not None:
            parts.append(f"{_duration(self.seconds_left)} left")
        return ", ".join(parts)


class Meter:
    """Makes figures of what has ended and what tasks in flight tell.

    Args:
        rows: of the tables, in all.
        found: rows that earlier runs have ended, by status.
    """

    def __init__(self, rows: int, found: Counter) -> None:
        self._rows, self._found = rows, found
        self._began = time.monotonic()
        self._points = deque([(self._began, 0, 0)])

    def figures(self, statuses: Counter) -> Figures:
        """Of all rows that have ended so far, by status."""
        now = time.monotonic()
        made = statuses["ok"] - self._found["ok"]
        ended = statuses.total() - self._found.total()
        while len(self._points) > 1 and now - self._points[0][0] > _WINDOW_SECONDS:
            self._points.popleft()
        then, made_then, ended_then = self._points[0]
        seconds = max(now - then, 1e-9)
        self._points.append((now, made, ended))
        return Figures(
            rows=self._rows,
            statuses=statuses,
            made=made,
            images_per_second=max(0.0, (made - made_then) / seconds),
            rows_per_second=max(0.0, (ended - ended_then) / seconds),
            seconds=now - self._began,
        )


class ProgressLine:
    """A bar on a terminal, a line now and then in a log file. Use as a context manager."""

    def __init__(self, name: str, *, silent: bool = False) -> None:
        self._name, self._silent = name, silent
        self._lines = not sys.stderr.isatty()
        self._told = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows  {task.fields[note]}"),
            console=Console(stderr=True),
            disable=silent or self._lines,
        )
        self._task = self._bar.add_task(name, total=None, note="")

    def __enter__(self) -> Callable[[Figures], None]:
        self._bar.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _show(self, figures: Figures) -> None:
        note = figures.line()
        self._bar.update(self._task, completed=figures.ended, total=figures.rows, note=note)
        now = time.monotonic()
        if self._lines and not self._silent and now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            rows = f"{figures.ended}/{figures.rows} rows"
            print(f"{self._name}: {rows}, {note}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
