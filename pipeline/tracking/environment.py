"""What a run was made with: code, packages, command, machine."""

import getpass
import os
import shlex
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from pipeline.tracking.secrets import redact_arguments

PACKAGES = (
    *("torch", "deepspeed", "transformers", "bitsandbytes", "peft", "webdataset", "ray", "mlflow"),
    *("numpy", "pyarrow", "safetensors", "tokenizers"),
)
_CODE = Path(__file__).resolve().parents[2]


def run_tags() -> dict[str, str]:
    """Tags of a run: commit, whether the code differs from it, versions, command, host, user."""
    tags = {f"version.{name}": version for name, version in versions().items()}
    tags |= {
        # Of what stands there MLflow's page shows the part behind the last slash.
        "mlflow.source.name": " ".join(["roseate", *sys.argv[1:2]]),
        "command": shlex.join(_command())[:5000],
        "mlflow.source.type": "JOB" if "SLURM_JOB_ID" in os.environ else "LOCAL",
        "mlflow.user": _user(),
        "host": socket.gethostname(),
    }
    if job := os.environ.get("SLURM_JOB_ID"):
        tags["slurm.job_id"] = job
    commit, is_dirty = code_commit()
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "code.changed": str(is_dirty).lower()}
    return tags


def _command() -> list[str]:
    return ["roseate", *redact_arguments(sys.argv[1:])]


def versions() -> dict[str, str]:
    """Versions of Python, of ourselves and of the packages that a run depends on."""
    found = {"python": sys.version.partition(" ")[0]}
    for name in ("roseate", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_commit() -> tuple[str | None, bool]:
    """(git commit of the code that runs, whether files of it differ); (None, False) outside of a checkout."""
    top, commit = _git("rev-parse", "--show-toplevel"), _git("rev-parse", "HEAD")
    if (
        commit is None or Path(top or "").resolve() != _CODE
    ):  # installed inside of another's checkout
        return None, False
    return commit, bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(_CODE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for its user
        return str(os.getuid())
