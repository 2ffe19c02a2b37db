"""`roseate` commands, in processes of their own or in this one."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.cli.main import main


def roseate(*arguments: object) -> dict:
    """Run a command; its summary.

    Raises:
        AssertionError: its exit code is not 0, with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "summary.json"
        run(*arguments, "--json", told)
        return json.loads(told.read_text())


def run(*arguments: object, expect: int = 0, **options: object) -> subprocess.CompletedProcess:
    """Run a command to its end.

    Raises:
        AssertionError: its exit code is not the one expected, with what it said.
    """
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == expect, done.stderr[-4000:]
    return done


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | None:
    """Run a command in this process; what it exits with, once it does."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["roseate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code
