"""The run under which all runs of an experiment folder stand, whichever of them makes it."""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

FILE = "tracking.json"


def parent_of(root: Path) -> dict:
    """Key and name of that of an experiment folder, and the file that holds them; made by the first to ask."""
    path = root.absolute() / FILE
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f".{FILE}.{uuid.uuid4().hex}")
        mine.write_text(json.dumps({"key": uuid.uuid4().hex, "name": path.parent.name}))
        with suppress(FileExistsError):  # another was first
            os.link(mine, path)
        mine.unlink()
    return json.loads(path.read_text()) | {"file": str(path)}


@contextmanager
def one_at_a_time(parent: dict) -> Iterator[None]:
    """Nobody else looks for the run of this parent, or makes it, within the context."""
    with ExitStack() as held:
        # It may be moved since: whoever begins there now has a file of its own.
        with suppress(FileNotFoundError):
            fcntl.flock(held.enter_context(open(parent["file"], "r+")), fcntl.LOCK_EX)
        yield
