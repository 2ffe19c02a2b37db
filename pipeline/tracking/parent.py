"""The run under which all runs of an experiment folder stand, whichever of them makes it."""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from data_prep.storage import write_file

FILE = "tracking.json"


def parent_of(root: Path) -> dict:
    """Key and name of that of an experiment folder, and the file that holds them; made by the first to ask."""
    path = root.absolute() / FILE
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f".{FILE}.{uuid.uuid4().hex}")
        try:
            told = {"key": uuid.uuid4().hex, "name": path.parent.name}
            write_file(mine, json.dumps(told).encode())
            try:
                os.link(mine, path)
            except FileExistsError:
                pass  # another was first
            except OSError:  # there are no links here: then the last to ask
                os.replace(mine, path)
        finally:
            mine.unlink(missing_ok=True)
    return json.loads(path.read_text()) | {"file": str(path)}


@contextmanager
def one_at_a_time(parent: dict) -> Iterator[None]:
    """Nobody else looks for the run of this parent, or makes it, within the context."""
    with ExitStack() as held:
        # It may be moved since, or belong to somebody else: at worst there are two.
        with suppress(OSError):
            fcntl.flock(held.enter_context(open(parent["file"], "r+")), fcntl.LOCK_EX)
        yield
