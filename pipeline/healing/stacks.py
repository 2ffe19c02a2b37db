"""What the threads of this process are doing."""

import faulthandler
import sys
import threading
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from pipeline.healing.standing import Report

# Files whose calls wait for other ranks; the last is where the loop asks for what they agree on.
COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/", "/pipeline/distributed.py")
STACK_FRAMES = 40


def report_stacks() -> Report:
    """The main thread's stack, and whether any thread but the calling one waits for other ranks.

    Backward runs in threads of its own where there is a GPU. No source is read: the disk it lies on may
    be what hangs.
    """
    mine = threading.get_ident()
    stacks = {
        thread: [
            (f.f_code.co_filename, line, f.f_code.co_name) for f, line in traceback.walk_stack(f)
        ]
        for thread, f in sys._current_frames().items()
        if thread != mine
    }
    in_collective = any(
        part in filename
        for stack in stacks.values()
        for filename, *_ in stack
        for part in COLLECTIVES
    )
    main = stacks.get(threading.main_thread().ident, [])[:STACK_FRAMES]
    # Innermost last, as Python prints them.
    lines = [f"{filename}:{line} in {function}" for filename, line, function in reversed(main)]
    return Report(in_collective, "\n".join(lines))


class StackFile:
    """Takes the stacks of all threads when this process stands still.

    The file is opened beforehand, since a thread of C writes it when Python cannot, and removed if
    nothing had to be written.

    Args:
        path: of the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # What an earlier process of the run has left stays.
        self._file: TextIO = path.open("a")

    def arm(self, seconds: float) -> None:
        """Unless this is called again within so many seconds, write the stacks without Python's help.

        For a call that never gives Python's lock back: no thread of Python runs then, ours neither.
        """
        faulthandler.dump_traceback_later(seconds, file=self._file)

    def disarm(self) -> None:
        """Write nothing by itself any more."""
        faulthandler.cancel_dump_traceback_later()

    def write(self, title: str) -> None:
        """Write the stacks of all threads now, under a title."""
        self.disarm()
        self._file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {title}\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file, all_threads=True)
        self._file.flush()

    def close(self) -> None:
        """Leave no empty file behind."""
        self.disarm()
        self._file.close()
        if self._path.stat().st_size == 0:
            self._path.unlink()
