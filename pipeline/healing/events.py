"""What befell a run and what it did about it: an append-only file that survives every restart.

    {root}/{name}/events.jsonl    one JSON object a line, on disk before the run goes on

It is the source of truth for the budgets and for the data that was skipped. Only the main rank reads and
writes it; what the others need it broadcasts.
"""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from pipeline.healing.journal import append_lines, read_lines

FILE = "events.jsonl"
# start: at step 0. restart: from a checkpoint. skip: not finite, batch dropped. rollback: to an earlier
# checkpoint. spike: the same where there was none to return to. backoff: fp16's loss scale. config: goes on
# otherwise configured. save: a checkpoint could not be written. hang: ended by the watchdog.
Kind = Literal["start", "restart", "skip", "spike", "rollback", "backoff", "config", "hang", "save"]


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        kind: see `Kind`.
        step: of the run, when it happened; of a rollback, where it was noticed.
        position: samples consumed then; of a rollback, where the data goes on; None of a hang.
        number: how many of its kind there are since the run's start, this one included.
        time: UTC, ISO 8601.
        details: by kind, JSON.
    """

    kind: Kind
    step: int
    position: int | None
    number: int
    time: str
    details: dict = field(default_factory=dict)


class EventLog:
    """The events of a run, those of earlier processes among them.

    Args:
        run_folder: has or gets events.jsonl.
    """

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / FILE
        self.events = [Event(**row) for row in read_lines(self.path)]

    def add(self, kind: Kind, step: int, position: int | None, **details: object) -> Event:
        """Append an event; when this returns it is on disk.

        Raises:
            ValueError: there is no such kind.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"{kind!r} is no kind of event; there are {', '.join(get_args(Kind))}")
        number = 1 if kind == "start" else 1 + sum(e.kind == kind for e in self._since_start())
        now = datetime.now(UTC).isoformat(timespec="seconds")
        event = Event(kind, step, position, number, now, details)
        append_lines(self.path, [asdict(event)])
        self.events.append(event)
        return event

    @property
    def run_id(self) -> str | None:
        """The tracker's run that the last start or restart wrote to."""
        ids = [e.details.get("run_id") for e in self.events if e.kind in ("start", "restart")]
        return ids[-1] if ids else None

    def rollback(self, step: int, to_step: int, position: int, **details: object) -> Event:
        """Append a rollback, before anything is done about it.

        Args:
            step: where the spike was noticed.
            to_step: of the checkpoint that the run returns to.
            position: where the data goes on: what lies between the checkpoint and here is skipped.
            details: further ones, the spike's own.
        """
        return self.add("rollback", step, position, to_step=to_step, **details)

    @property
    def num_rollbacks(self) -> int:
        """Rollbacks in the file. A checkpoint keeps it, and so says which of them it has behind it."""
        return len(self._rollbacks(0))

    def position_after(self, step: int, position: int, known: int) -> int:
        """Where the data goes on after a checkpoint.

        Not where the checkpoint says, if the run had returned to it before it crashed: the data that
        made the loss spike would come again.

        Args:
            step: of the checkpoint.
            position: in its state.
            known: `num_rollbacks` when it was saved.
        """
        later = [e for e in self._rollbacks(known) if e.details["to_step"] == step]
        return later[-1].position if later else position

    def is_abandoned(self, step: int, known: int) -> bool:
        """Whether a checkpoint lies on a stretch that the run has left by a rollback.

        Such are deleted at a rollback; this finds those that a crash in between has left.

        Args:
            step: of the checkpoint.
            known: `num_rollbacks` when it was saved.
        """
        return any(e.details["to_step"] < step for e in self._rollbacks(known))

    def skips_used(self, step: int, window: int) -> int:
        """Steps skipped as not finite among the last `window` steps, `step` included.

        A batch that came again after a restart counts once.
        """
        recent = [e for e in self._since_start() if e.kind == "skip" and e.step > step - window]
        return len({e.position for e in recent})

    def rollbacks_used(self) -> int:
        """Rollbacks since the start of the run."""
        return sum(e.kind == "rollback" for e in self._since_start())

    def untold(self) -> list[Event]:
        """What was written after the last start or restart by a process that then ended.

        To be told to the tracker by the next one, before it adds its own `restart`.
        """
        told = [n for n, e in enumerate(self.events) if e.kind in ("start", "restart")]
        since = self.events[told[-1] :] if told else self.events
        return [e for e in since if e.kind == "hang"]

    def _rollbacks(self, known: int) -> list[Event]:
        return [e for e in self.events if e.kind == "rollback"][known:]

    def _since_start(self) -> list[Event]:
        starts = [n for n, e in enumerate(self.events) if e.kind == "start"]
        return self.events[starts[-1] :] if starts else self.events
