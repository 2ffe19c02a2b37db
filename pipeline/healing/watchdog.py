"""A thread beside the loop that ends a hung run by name, within the time allowed.

The loop says where it is by `beat`; each rank's thread passes it on to the main rank's now and then. That
one names the ranks that the others wait for, has all write their stacks, and all end. Ranks that hear
nothing of the main rank any more, and stand still themselves, end on their own and name that one.
"""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.distributed import DistInfo
from pipeline.healing.events import EventLog
from pipeline.healing.post import Post
from pipeline.healing.stacks import StackFile, report_stacks
from pipeline.healing.standing import Report, Standing, find_hung, narrow, tell

log = logging.getLogger("roseate")

EXIT_HUNG = 5
# Words that the main rank takes in a second, some 40 us each with its answer, however many ranks there are.
WORDS_PER_SECOND = 100
# As many may get lost before a rank counts as silent.
WORDS_LOST = 5
REPORT_SECONDS = 4.0
# For what may block when we end: the terminal's pipe, the disk.
BRIEF_SECONDS = 2.0


class Watchdog:
    """Watches over one rank, and on the main rank over all. Every rank must make one; a context.

    Args:
        info: of this process; its group must be there.
        seconds: allowed between two beats on the rank that the others wait for; 0 watches nothing.
        run_folder: gets hang/rank_NNNNN.txt with the stacks, and an event `hang`.
    """

    def __init__(self, info: DistInfo, seconds: float, run_folder: Path) -> None:
        self._info, self._seconds, self._run_folder = info, seconds, run_folder
        self._host = socket.gethostname()
        # Count, step, phase, factor. Before the first beat nobody is in a hurry.
        self._beat = (0, 0, "start", math.inf)
        self._own = self._standing(self._beat, 0.0)
        self._thread: threading.Thread | None = None
        if not seconds:
            return
        self._post = Post(info)
        if not self._post.is_open:
            return
        self._tick = min(1.0, max(0.05, seconds / 50))
        self._interval = max(self._tick, info.world_size / WORDS_PER_SECOND)
        self._silent_after = WORDS_LOST * self._interval
        # Until they are heard of, all that we look for.
        watched = range(1, info.world_size) if info.is_main else range(1)
        self._others = {
            r: Standing(r, self._post.hosts[r], 0, 0, "start", 1.0, 0.0) for r in watched
        }
        self._reports: dict[int, Report] = {}
        self._called = self._told = self._stopped = False
        self._stacks = StackFile(run_folder / "hang" / f"rank_{info.rank:05d}.txt")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, step: int, phase: str, factor: float = 1.0) -> None:
        """Say that a phase of a step begins. Every rank must say the same in the same places.

        Args:
            step: of the run.
            phase: data, forward, backward, step, validate, checkpoint and the like.
            factor: by which the time allowed until the next beat is longer; math.inf: no limit.
        """
        self._beat = (self._beat[0] + 1, step, phase, factor)

    def stop(self) -> None:
        """Watch no longer."""
        if self._thread is None:
            return
        self._stopped = True
        self._post.hang_up()
        self._thread.join()
        self._thread = None
        self._stacks.close()
        self._post.close()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _watch(self) -> None:
        try:
            last = sent = time.monotonic()
            while not self._stopped:
                self._listen()
                now = time.monotonic()
                # A job that was suspended as a whole and goes on has not hung meanwhile.
                self._count(min(now - last, WORDS_LOST * self._tick))
                last = now
                if now - sent >= self._interval and not self._info.is_main:
                    self._post.send(0, "standing", asdict(self._own))
                    sent = now
                if self._called:
                    self._end_when_told()
                elif self._info.is_main:
                    self._judge()
                else:
                    self._look_for_main()
            self._post.send_all("farewell", {})
        except Exception:
            # Whatever it is, training is not to end by it.
            log.exception("rank %d is no longer watched", self._info.rank)
            self._stacks.disarm()

    def _listen(self) -> None:
        """Take in what comes within a tick."""
        for rank, kind, value in self._post.listen(self._tick):
            if kind == "standing":
                self._others[rank] = Standing(**value)
                if self._info.is_main:
                    self._post.send(rank, "standing", asdict(self._own))
            elif kind == "report":
                self._reports[rank] = Report(**value)
            elif kind == "farewell":
                self._others.pop(rank, None)
            else:
                self._called, self._told = True, kind == "told"

    def _count(self, passed: float) -> None:
        """Let `passed` seconds pass for us and for those we have not heard of meanwhile."""
        own, beat = self._own, self._beat
        self._own = self._standing(beat, own.age + passed if own.beats == beat[0] else 0.0)
        for rank, s in self._others.items():
            self._others[rank] = replace(s, age=s.age + passed, silent=s.silent + passed)
        left = self._seconds * self._own.factor - self._own.age
        if math.isfinite(left):
            # When Python is locked this writes the stacks, a little after it should have been us.
            self._stacks.arm(max(left, 0.0) + 2 * self._silent_after)
        else:
            self._stacks.disarm()

    def _standing(self, beat: tuple[int, int, str, float], age: float) -> Standing:
        return Standing(self._info.rank, self._host, *beat, age)

    def _judge(self) -> None:
        """The main rank: end all if some rank is hung."""
        standings = [self._own, *self._others.values()]
        hung = find_hung(standings, self._own, self._seconds, self._silent_after)
        if not hung:
            return
        briefly(self._stacks.write, self._title())
        self._reports[0] = report_stacks()
        asked = {s.rank for s in standings if s.silent <= self._silent_after}
        until = time.monotonic() + REPORT_SECONDS
        while asked - self._reports.keys() and time.monotonic() < until:
            self._post.send_all("called", {})
            self._listen()
        named = narrow(hung, self._reports)
        self._say(tell(named, standings, self._reports, self._info.world_size), named)
        # Twice, since one may get lost; who hears neither ends a little later.
        for _ in range(2):
            self._post.send_all("told", {})
            time.sleep(self._tick)
        os._exit(EXIT_HUNG)

    def _end_when_told(self) -> None:
        """Another rank, called by the main one: write, report and end."""
        briefly(self._stacks.write, self._title())
        report = asdict(report_stacks())
        until = time.monotonic() + 2 * REPORT_SECONDS
        while not self._told and time.monotonic() < until:
            self._post.send(0, "report", report)
            self._listen()
        os._exit(EXIT_HUNG)

    def _look_for_main(self) -> None:
        """Another rank: end if we stand still and the main rank, who should say why, is not heard of."""
        main = self._others.get(0)
        if main is None or not (self._own.is_overdue(self._seconds)):
            return
        if main.silent > self._silent_after and main.is_overdue(self._seconds):
            briefly(self._stacks.write, self._title())
            self._say(tell([main], [self._own, main], {}, world_size=0), [main])
            os._exit(EXIT_HUNG)

    def _say(self, told: str, named: list[Standing]) -> None:
        """To the terminal, past Python's buffers, and to the run's events."""
        rank, folder = self._info.rank, self._run_folder / "hang"
        end = f"ending with exit code {EXIT_HUNG}; stacks are in {folder}"
        briefly(os.write, 2, f"roseate: rank {rank}: {told}\n{end}\n".encode())
        # Where the main rank is silent the next one writes.
        if rank <= 1:
            ranks = [{k: getattr(s, k) for k in ("rank", "host", "step", "phase")} for s in named]
            briefly(self._record, ranks)

    def _record(self, ranks: list[dict]) -> None:
        EventLog(self._run_folder).add("hang", self._own.step, None, ranks=ranks)

    def _title(self) -> str:
        own, pid = self._own, os.getpid()
        where = f"step {own.step}, {own.phase}, for {own.age:.0f} s"
        return f"rank {own.rank} on {own.host}, process {pid}: {where}"


def briefly(task: Callable, *arguments: object) -> None:
    """Do it, but wait for it no longer than `BRIEF_SECONDS`: we are about to end, it may be stuck."""
    worker = threading.Thread(target=task, args=arguments, daemon=True)
    worker.start()
    worker.join(BRIEF_SECONDS)
