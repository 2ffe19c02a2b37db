"""`roseate` commands, in processes of their own or in this one."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.cli.main import main
from tests.helpers.forks import fork_group


def roseate(*arguments: object, processes: int = 1) -> dict:
    """Run a command by `forked`; its summary."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "summary.json"
        forked(*arguments, "--json", told, processes=processes)
        return json.loads(told.read_text())


def run(*arguments: object, expect: int = 0, **options: object) -> subprocess.CompletedProcess:
    """Run a command to its end, in a new Python, as a person does.

    Raises:
        AssertionError: its exit code is not the one expected, with what it said.
    """
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == expect, done.stderr[-4000:]
    return done


@dataclass(frozen=True)
class Said:
    """What a command, or all its ranks, printed."""

    stdout: str
    stderr: str


def forked(*arguments: object, processes: int = 1, expect: int = 0) -> Said:
    """Run a command to its end without the seconds of imports, on so many ranks.

    Raises:
        AssertionError: the exit code of the first rank to fail, or 0, is not the one expected.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "stdout", Path(folder) / "stderr"
        with out.open("ab") as stdout, err.open("ab") as stderr:
            told = {"stdout": stdout.fileno(), "stderr": stderr.fileno()}
            codes = fork_group(_command, processes, list(map(str, arguments)), **told)
        said = Said(out.read_text(), err.read_text())
    code = next((code for code in codes.values() if code), 0)
    assert code == expect, said.stderr[-4000:]
    return said


def _command(arguments: list[str]) -> None:
    sys.argv = ["roseate", *arguments]
    main()


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | None:
    """Run a command in this process; what it exits with, once it does."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["roseate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code
