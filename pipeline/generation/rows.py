"""The output of `roseate generate`: a file of JSON lines that a second start goes on with."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from data_prep.errors import ConfigError, Problem
from data_prep.storage import write_file

_KEYS = ({"id", "text"}, {"id", "error"})


def read_rows(path: Path) -> dict[str, dict]:
    """Rows that are there already, by id; those that a second start makes again are not among them.

    Args:
        path: the file; it need not be there. It is not changed.

    Raises:
        ConfigError: it is a folder or cannot be read, or a line is no row of `roseate generate`. The last
            line may be torn: a start was killed there.
    """
    try:
        whole = path.read_bytes() if path.exists() else b""
    except OSError as error:
        rule = f"is a file of JSON lines, or none yet ({error.strerror})"
        raise ConfigError([Problem("--output", str(path), rule, "name another file")]) from None
    *lines, _ = whole.split(b"\n")
    rows = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or row.keys() - {"attention"} not in _KEYS:
            rule = f"holds rows of roseate generate and nothing else; line {number} is none"
            raise ConfigError([Problem("--output", str(path), rule, "name another file")])
        if "text" in row:
            rows[row["id"]] = row
    return rows


def write_rows(done: Iterable[dict], rows: Iterable[dict], path: Path) -> dict[str, int]:
    """Keep rows that are done, and append others as they come; how many of each kind.

    Rows with an error and a torn line are taken out of the file first: they are made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = "".join(map(as_line, done)).encode()
    if path.exists() and path.read_bytes() != kept:
        write_file(path, kept)
    counts = {"written": 0, "errors": 0}
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(as_line(row))
            file.flush()
            counts["written"] += 1
            counts["errors"] += "error" in row
        os.fsync(file.fileno())
    return counts


def as_line(row: dict) -> str:
    """A row as it stands in the file."""
    return json.dumps(row, ensure_ascii=False) + "\n"
