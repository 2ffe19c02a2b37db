"""The batch scripts without SLURM: srun, scontrol and the interpreter are stand-ins that take notes.

tests/cluster runs the same scripts on a real SLURM; here are the corners that a real one is slow to show.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SLURM = REPOSITORY / "slurm"
SCRIPTS = ("ingest.sh", "pretrain.sh", "evaluate.sh")
HEADER_FLAGS = {
    *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "time", "signal", "requeue"),
    *("open-mode", "output"),
}
ARGUMENTS = ["demo", "name=two words", "model.resampler={depth: 1, num_heads: 2}", "optim.lr=1e-3"]

# Drops its own options and runs the rest, as the one task.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_PROCID=0 SLURM_LOCALID=0
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$*" >>"$NOTES/scontrol.notes"
case "$1 $2" in
  "show hostnames") echo n1; [[ $SLURM_NNODES == 1 ]] || echo n2 ;;
  "show node") echo "NodeName=$3 NodeAddr=127.0.0.1 NodeHostName=$3" ;;
  "show job") echo "JobId=$3 JobState=$STATE Reason=None" ;;
esac
"""
PYTHON = f"""#!{sys.executable}
import json, os, signal, socket, sys, time
arguments = sys.argv[1:]
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_AUTH_MODE")
seen = {{name: os.environ.get(name) for name in names}}
with open(os.environ["NOTES"] + "/python.notes", "a") as notes:
    notes.write(json.dumps([arguments, seen]) + "\\n")
if arguments[:2] == ["-m", "ray.scripts.scripts"]:
    listener = socket.socket()
    for argument in arguments:
        if argument.startswith("--port="):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", int(argument.partition("=")[2])))
            listener.listen()
    signal.pause()
if arguments[:1] == ["-"]:  # the script that waits for the Ray nodes
    while open(os.environ["NOTES"] + "/python.notes").read().count("ray.scripts") < int(arguments[2]):
        time.sleep(0.05)
if arguments[:3] == ["-m", "pipeline", "train"] and os.environ.get("STOPS_EARLY"):
    open(os.environ["ROSEATE_REQUEUE_MARKER"], "w").close()
codes = json.loads(os.environ.get("CODES", "{{}}"))
sys.exit(codes.get(arguments[2] if len(arguments) > 2 else "", 0))
"""


class Bench:
    """A folder with the stand-ins; `run` runs a batch script there."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def run(self, script: str, *arguments: str, **environment: str):
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "ROSEATE", "RAY_"))
        }
        clean |= {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "NOTES": str(self.folder),
            "STATE": "RUNNING",
            "ROSEATE_PYTHON": str(self.folder / "python"),
            "ROSEATE_JOBS": str(self.folder / "jobs"),
            "SLURM_SUBMIT_DIR": str(REPOSITORY),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NAME": "bench",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NNODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_CPUS_PER_TASK": "1",
        }
        # SLURM runs a copy from its spool folder.
        copy = shutil.copy(SLURM / script, self.folder / "slurm_script")
        return subprocess.run(
            ["bash", copy, *arguments],
            env=clean | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, *start: str) -> list[tuple[list[str], dict]]:
        """Arguments after `start` and environment, of every call of the interpreter."""
        lines = self.folder / "python.notes"
        notes = [json.loads(line) for line in lines.read_text().splitlines()]
        return [(a[len(start) :], e) for a, e in notes if a[: len(start)] == list(start)]

    def requeued(self) -> bool:
        notes = self.folder / "scontrol.notes"
        return any(line.startswith("requeue ") for line in notes.read_text().splitlines())


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_scripts_are_valid_bash():
    for path in [*SLURM.glob("*.sh"), *(REPOSITORY / "tests").rglob("*.sh")]:
        subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    paths = [*SLURM.glob("*.sh"), *(REPOSITORY / "tests").rglob("*.sh")]
    paths += [REPOSITORY / ".ci" / "run", REPOSITORY / ".ci" / "system-packages"]
    run = ["shellcheck", "--external-sources", "--severity=warning", *paths]
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_headers_hold_resources_only(script):
    lines = re.findall(r"^#SBATCH (.*)$", (SLURM / script).read_text(), re.MULTILINE)
    flags = {re.fullmatch(r"--([a-z-]+)(=\S+)?", line)[1] for line in lines}
    assert flags <= HEADER_FLAGS
    assert {"nodes", "ntasks-per-node", "cpus-per-task", "requeue", "open-mode"} <= flags


@pytest.mark.skipif(not shutil.which("sbatch"), reason="SLURM is not installed")
def test_header_flags_are_known_to_sbatch(tmp_path):
    config = tmp_path / "slurm.conf"
    config.write_text("ClusterName=none\nSlurmctldHost=localhost\nPlugStackConfig=/dev/null\n")
    environment = os.environ | {"SLURM_CONF": str(config)}
    run = ["sbatch", "--help"]
    known = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    # `sbatch --help` keeps open-mode to itself; its manual has it, and tests/cluster uses it.
    assert {flag for flag in HEADER_FLAGS if f"--{flag}" not in known} <= {"open-mode"}


def test_pretrain_passes_everything_through(bench):
    done = bench.run("pretrain.sh", *ARGUMENTS, "--fresh")
    assert done.returncode == 0, done.stderr

    ((check, _),) = bench.calls("-m", "pipeline", "config", "check")
    assert check == [*ARGUMENTS, "--world-size", "2"]
    ((train, environment),) = bench.calls("-m", "pipeline", "train")
    assert train == [*ARGUMENTS, "--fresh"]
    port = 20000 + os.getpid() % 10000
    assert environment == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RAY_AUTH_MODE": None,
    }
    assert not bench.requeued()


def test_pretrain_starts_no_task_on_a_mistake(bench):
    done = bench.run("pretrain.sh", "demo", CODES='{"config": 2}')
    assert done.returncode == 2
    assert bench.calls("-m", "pipeline", "train") == []


def test_pretrain_hands_on_the_exit_code_of_the_training(bench):
    done = bench.run("pretrain.sh", "demo", CODES='{"train": 3}', STOPS_EARLY="1")
    assert done.returncode == 3
    assert not bench.requeued()


def test_pretrain_requeues_what_stopped_early(bench):
    done = bench.run("pretrain.sh", "demo", STOPS_EARLY="1", SLURM_RESTART_COUNT="19")
    assert done.returncode == 0
    assert bench.requeued()
    assert "queued again, restart 20 of 20" in done.stdout
    assert not list(bench.folder.glob("jobs/*/requeue")), "the marker is for one restart"


def test_pretrain_is_not_requeued_for_ever(bench):
    done = bench.run("pretrain.sh", "demo", STOPS_EARLY="1", SLURM_RESTART_COUNT="20")
    assert done.returncode == 75
    assert not bench.requeued()
    assert "not queued again after 20 restarts: submit it once more" in done.stdout


def test_cancelled_pretrain_is_not_requeued(bench):
    done = bench.run("pretrain.sh", "demo", STOPS_EARLY="1", STATE="CANCELLED")
    assert done.returncode == 75
    assert not bench.requeued()
    assert "not queued again, the job is CANCELLED" in done.stdout


@pytest.mark.parametrize("code", [0, 2, 3])
def test_ingest_starts_ray_and_hands_on_arguments_and_exit_code(bench, code):
    done = bench.run("ingest.sh", *ARGUMENTS, CODES=json.dumps({"ingest": code}))
    assert done.returncode == code, done.stderr

    address = f"127.0.0.1:{30000 + os.getpid() % 2000}"
    ((ingest, environment),) = bench.calls("-m", "pipeline", "ingest")
    assert ingest == [*ARGUMENTS, f"ingest.ray.address={address}"]
    assert environment["RAY_AUTH_MODE"] == "token"
    starts = [a for a, _ in bench.calls("-m", "ray.scripts.scripts", "start")]
    assert len(starts) == 2
    assert "--head" in starts[0]
    assert f"--address={address}" in starts[1]
    assert not list(bench.folder.glob("jobs/*/ray-token")), "the token outlived the cluster"


def test_evaluate_passes_everything_through(bench):
    done = bench.run("evaluate.sh", *ARGUMENTS, CODES='{"evaluate": 2}')
    assert done.returncode == 2
    ((arguments, _),) = bench.calls("-m", "pipeline", "evaluate")
    assert arguments == ARGUMENTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_config_is_said_so(bench, script):
    done = bench.run(script)
    assert done.returncode == 2
    assert f"which run? sbatch slurm/{script} CONFIG [section.key=value ...]" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_outside_of_the_checkout_is_said_so(bench, script):
    done = bench.run(script, "demo", SLURM_SUBMIT_DIR="/nonexistent")
    assert done.returncode == 2
    assert "no slurm/job.sh in /nonexistent: run sbatch from the checkout" in done.stderr


def test_no_interpreter_is_said_so(bench):
    done = bench.run("evaluate.sh", "demo", ROSEATE_PYTHON="/nonexistent/python")
    assert done.returncode == 2
    assert "no interpreter at ROSEATE_PYTHON=/nonexistent/python: run `make install`" in done.stderr


def test_dead_ray_head_is_said_so(bench):
    port = 30000 + os.getpid() % 2000
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))  # bound but not listening: the head cannot have it
        done = bench.run("ingest.sh", "demo")
    assert done.returncode == 2
    assert "the Ray head ended, see" in done.stderr


def test_node_without_address_is_said_so(bench):
    (bench.folder / "scontrol").write_text(SCONTROL.replace("NodeAddr=127.0.0.1", ""))
    done = bench.run("pretrain.sh", "demo")
    assert done.returncode == 2
    assert "SLURM gives no address for node n1" in done.stderr
