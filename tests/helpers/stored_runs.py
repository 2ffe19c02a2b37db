"""What training jobs left in the SQLite store of MLflow."""

import re
import sqlite3
from pathlib import Path


def run_ids(log: str) -> list[str]:
    """MLflow runs that a log names, one for each start of the training."""
    return re.findall(r"MLflow run (\w{32}) ", log)


def stored_run(root: Path, run_id: str) -> tuple[str, list[int]]:
    """Status of a run in the SQLite store, and the steps of its loss, in order."""
    with sqlite3.connect(root / "mlflow.db") as store:
        found = store.execute("SELECT status FROM runs WHERE run_uuid = ?", [run_id]).fetchall()
    assert len(found) == 1, f"run {run_id} is not in {root}/mlflow.db"
    return found[0][0], [step for step, _, _ in losses(root, run_id)]


def losses(root: Path, run_id: str, metric: str = "loss") -> list[tuple[int, float, float]]:
    """Step, loss and the second it was stored at, by step; a step that was done again is there again."""
    query = "SELECT step, value, timestamp FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step, timestamp"
    with sqlite3.connect(root / "mlflow.db") as store:
        rows = store.execute(query, [run_id, metric]).fetchall()
    return [(step, value, milliseconds / 1000) for step, value, milliseconds in rows]


def curve(root: Path, run_id: str, metric: str = "loss") -> dict[int, float]:
    """Loss by step; whatever was computed more than once has to be equal to the last bit."""
    result: dict[int, float] = {}
    for step, value, _ in losses(root, run_id, metric):
        assert result.setdefault(step, value) == value, f"step {step}: {result[step]}, then {value}"
    return result
