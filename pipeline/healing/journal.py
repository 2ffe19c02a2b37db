"""JSON lines that are on disk when the call returns, and that a killed writer cannot spoil."""

import json
import logging
import os
from pathlib import Path

log = logging.getLogger("roseate")


def append_lines(path: Path, rows: list[dict]) -> None:
    """Append one JSON line for each row, in one write; a line torn by another's death is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else b"\n" + lines
        file.write(lines)
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict]:
    """The whole lines; a torn one is passed over, loudly. No file, no lines."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            row = json.loads(line) if line else None
        except ValueError:
            log.warning("%s line %d is torn and was passed over", path, number)
            continue
        if row is not None:
            rows.append(row)
    return rows
