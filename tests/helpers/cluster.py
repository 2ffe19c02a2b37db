"""A SLURM of two nodes on this host, and what it takes to send jobs to it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

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
        folder: of the running cluster.
        logs: folder of the job logs and of the jobs' own state.
    """

    def __init__(self, folder: Path, logs: Path):
        self._folder = folder
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        # Tasks on loopback and on the CPU, whatever this host has.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("ROSEATE_", "RAY_"))}
        self._environment = clean | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "ROSEATE_PYTHON": sys.executable,
            "ROSEATE_JOBS": str(logs / "jobs"),
            "ROSEATE_INTERFACE": "lo",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str, cwd: Path = REPOSITORY) -> str:
        """A SLURM command; its output."""
        done = subprocess.run(
            command, env=self._environment, cwd=cwd, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """`sbatch <options> slurm/<script> <arguments>`; the job's id."""
        output = f"--output={self._logs}/%j.log"
        return self.run("sbatch", "--parsable", output, *options, f"slurm/{script}", *arguments)

    def log(self, job: str) -> str:
        path = self._logs / f"{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_log(self, job: str, text: str, seconds: float = 120) -> None:
        self.wait_until(lambda: text in self.log(job), seconds, job)

    def wait(self, job: str, seconds: float = 300) -> Ended:
        """Until the job has ended for good; a requeued one goes on counting."""
        deadline = time.monotonic() + seconds
        while True:
            shown = self.run("scontrol", "show", "job", job, "-o")
            state = _state(shown)
            if state in FINAL:
                code = int(re.search(r" ExitCode=(\d+):", shown)[1])
                return Ended(state, code, self.log(job))
            assert time.monotonic() < deadline, f"job {job} is {state}:\n{self.log(job)}"
            time.sleep(0.2)

    def ranks(self, job: str) -> dict[int, int]:
        """Rank to process id of the training processes of a job that run now."""
        return {
            int(values["RANK"]): pid
            for pid, values in self._processes()
            if values.get("SLURM_JOB_ID") == job and "RANK" in values and _trains(pid)
        }

    def _processes(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Process id and environment of everything that this cluster's jobs have started."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                pairs = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended meanwhile
                continue
            values = dict(pair.partition("=")[::2] for pair in pairs)
            ours = values.get("SLURM_CONF") == self._environment["SLURM_CONF"]
            if ours and "SLURMD_NODENAME" in values:
                yield int(folder.name), values

    def kill_rank(self, job: str, rank: int) -> float:
        """SIGKILL to one rank of a running job; when it was, by `time.time`."""
        self.wait_until(lambda: rank in self.ranks(job), job=job)
        os.kill(self.ranks(job)[rank], signal.SIGKILL)
        return time.time()

    def kill_node(self, node: str) -> None:
        """What a node looks like that has lost power: slurmd and all that ran there is gone, unsaid."""
        slurmd = int((self._folder / "run" / f"slurmd.{node}.pid").read_text())
        tasks = [pid for pid, values in self._processes() if values["SLURMD_NODENAME"] == node]
        parents = {int(re.search(r"PPid:\t(\d+)", _proc(pid, "status"))[1]) for pid in tasks}
        # Those first who would tell the controller how the tasks end.
        steps = [pid for pid in parents if _proc(pid, "comm").startswith("slurmstepd")]
        for pid in [slurmd, *steps, *tasks]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_slurmd(self, node: str) -> None:
        environment = self._environment | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        subprocess.run([MINI_SLURM, "start", self._folder, node], env=environment, check=True)
        self.wait_until(lambda: self.node_state(node) in ("idle", "mixed", "allocated"))

    def job_state(self, job: str) -> str:
        return _state(self.run("scontrol", "show", "job", job, "-o"))

    def node_state(self, node: str) -> str:
        return self.run("sinfo", "-h", "-N", "-n", node, "-o", "%T")

    def progress(self, job: str) -> int:
        """Step of the newest whole checkpoint, as the training tells the batch script."""
        path = self._logs / "jobs" / job / "progress"
        return int(path.read_text().strip() or 0) if path.exists() else 0

    def attempts(self, job: str) -> list[str]:
        """What the batch script notes of its attempts."""
        return (self._logs / "jobs" / job / "attempts").read_text().splitlines()

    def wait_until(self, holds: Callable[[], bool], seconds: float = 120, job: str = "") -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not after {seconds} s:\n{self.log(job)}"
            time.sleep(0.1)

    def logs_below(self, job: str) -> str:
        """What the job left in its own folder, for messages."""
        files = sorted((self._logs / "jobs" / job).glob("*.log"))
        return "".join(f"\n== {f.name}\n{f.read_text(errors='replace')}" for f in files)


def why_not() -> str:
    """What keeps a SLURM from running here; empty where nothing does."""
    missing = [c for c in ("slurmctld", "slurmd", "munged", "sbatch") if not _find(c)]
    if os.geteuid() != 0:
        return "a SLURM of one's own needs root"
    return f"not installed: {', '.join(missing)} (.ci/system-packages does it)" if missing else ""


@contextmanager
def running_cluster(logs: Path, **settings: str) -> Iterator[Cluster]:
    """The running cluster; `settings` are those of mini_slurm.sh."""
    # Short, since it holds the path of munge's socket (limit: 107 characters).
    folder = Path(tempfile.mkdtemp(prefix="mini-slurm-", dir="/tmp"))
    environment = os.environ | {"MINI_SLURM_PORT": str(_free_ports(3))} | settings
    environment["PATH"] += ":/usr/sbin:/sbin"
    try:
        up = subprocess.run([MINI_SLURM, "up", folder], env=environment, stderr=subprocess.PIPE)
        assert up.returncode == 0, up.stderr.decode(errors="replace")
        running = Cluster(folder, logs)
        yield running
        running.run("scancel", "--full", "--user=root")
        _wait_until_empty(running)
    finally:
        subprocess.run([MINI_SLURM, "down", folder], env=environment, check=True)
        shutil.rmtree(folder, ignore_errors=True)


def _state(shown: str) -> str:
    return re.search(r" JobState=(\w+)", shown)[1]


def _proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def _trains(pid: int) -> bool:
    with suppress(OSError):
        return _proc(pid, "cmdline").split("\0")[1:4] == ["-m", "pipeline", "train"]
    return False


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
