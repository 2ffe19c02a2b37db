"""A SLURM of two nodes on this host, for the session; and what it takes to send jobs to it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MINI_SLURM = REPOSITORY / "tests" / "cluster" / "mini_slurm.sh"
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


@dataclass(frozen=True)
class Ended:
    """How a job ended: SLURM's word for it, the exit code of the batch script, the whole log."""

    state: str
    exit_code: int
    log: str


class Cluster:
    """Submits the scripts of slurm/ the way a person does, from the checkout.

    Args:
        config: path of the slurm.conf of the running cluster.
        logs: folder of the job logs and of the jobs' own state.
    """

    def __init__(self, config: Path, logs: Path):
        self._logs = logs
        # Tasks on loopback and on the CPU, whatever this host has.
        self._environment = os.environ | {
            "SLURM_CONF": str(config),
            "ROSEATE_PYTHON": sys.executable,
            "ROSEATE_JOBS": str(logs / "jobs"),
            "ROSEATE_INTERFACE": "lo",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str) -> str:
        """A SLURM command; its output."""
        done = subprocess.run(
            command, env=self._environment, cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, *arguments: str) -> str:
        """`sbatch slurm/<script> <arguments>`; the job's id."""
        output = f"--output={self._logs}/%j.log"
        return self.run("sbatch", "--parsable", output, f"slurm/{script}", *arguments)

    def log(self, job: str) -> str:
        path = self._logs / f"{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_log(self, job: str, text: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log(job):
            assert time.monotonic() < deadline, f"no {text!r} in the log:\n{self.log(job)}"
            time.sleep(0.2)

    def wait(self, job: str, seconds: float = 300) -> Ended:
        """Until the job has ended for good; a requeued one goes on counting."""
        deadline = time.monotonic() + seconds
        while True:
            shown = self.run("scontrol", "show", "job", job, "-o")
            state = re.search(r" JobState=(\w+)", shown)[1]
            if state in FINAL:
                code = int(re.search(r" ExitCode=(\d+):", shown)[1])
                return Ended(state, code, self.log(job))
            assert time.monotonic() < deadline, f"job {job} is {state}:\n{self.log(job)}"
            time.sleep(0.2)

    def logs_below(self, job: str) -> str:
        """What the job left in its own folder, for messages."""
        files = sorted((self._logs / "jobs" / job).glob("*.log"))
        return "".join(f"\n== {f.name}\n{f.read_text(errors='replace')}" for f in files)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The running cluster; without root or SLURM a skip, and under CI=true a failure."""
    missing = [c for c in ("slurmctld", "slurmd", "munged", "sbatch") if not _find(c)]
    reason = f"not installed: {', '.join(missing)} (.ci/system-packages does it)" if missing else ""
    if os.geteuid() != 0:
        reason = "a SLURM of one's own needs root"
    if reason:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(reason)
    # Short, since it holds the path of munge's socket (limit: 107 characters).
    folder = Path(tempfile.mkdtemp(prefix="mini-slurm-", dir="/tmp"))
    environment = os.environ | {"MINI_SLURM_PORT": str(_free_ports(3))}
    environment["PATH"] += ":/usr/sbin:/sbin"
    try:
        up = subprocess.run([MINI_SLURM, "up", folder], env=environment, stderr=subprocess.PIPE)
        assert up.returncode == 0, up.stderr.decode(errors="replace")
        running = Cluster(folder / "slurm.conf", tmp_path_factory.mktemp("logs"))
        yield running
        running.run("scancel", "--full", "--user=root")
        _wait_until_empty(running)
    finally:
        subprocess.run([MINI_SLURM, "down", folder], env=environment, check=True)
        shutil.rmtree(folder, ignore_errors=True)


def _find(command: str) -> str | None:
    return shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for first in range(17000, 19000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as s:
                    s.bind(("", port))
        except OSError:
            continue
        return first
    raise OSError("no free ports for SLURM")


def _wait_until_empty(running: Cluster) -> None:
    deadline = time.monotonic() + 60
    while running.run("squeue", "-h") and time.monotonic() < deadline:
        time.sleep(0.2)
