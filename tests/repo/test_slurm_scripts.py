"""The batch scripts without SLURM, see tests/helpers/bench.py.

tests/cluster runs the same scripts on a real SLURM; here are the corners that a real one is slow to show.
"""

import json
import os
import re
import shutil
import socket
import subprocess

import pytest

from tests.helpers.bench import REPOSITORY, SCONTROL, SLURM, Bench

SCRIPTS = ("ingest.sh", "curate.sh", "features.sh", "pretrain.sh", "evaluate.sh")
HEADER_FLAGS = {
    *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "time", "signal", "requeue"),
    *("open-mode", "output"),
}
ARGUMENTS = ["demo", "name=two words", "model.resampler={depth: 1, num_heads: 2}", "optim.lr=1e-3"]


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


def test_pretrain_for_any_number_of_nodes(bench):
    one = {"SLURM_NNODES": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "8"}
    assert bench.run("pretrain.sh", "demo", **one).returncode == 0
    # A queued job that was given fewer nodes: SLURM_NTASKS is still that of before.
    fewer = {"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS": "32", "SLURM_NTASKS_PER_NODE": "8"}
    assert bench.run("pretrain.sh", "demo", **fewer).returncode == 0
    starts = bench.calls("-m", "pipeline", "train")
    assert [environment["WORLD_SIZE"] for _, environment in starts] == ["8", "24"]
    steps = [line for line in bench.notes("srun") if "--kill-on-bad-exit=1" in line]
    assert steps[0].startswith("--nodes=1 --ntasks=8 --ntasks-per-node=8 ")
    assert steps[1].startswith("--nodes=3 --ntasks=24 --ntasks-per-node=8 ")
    checks = bench.calls("-m", "pipeline", "config", "check")
    assert [arguments[-1] for arguments, _ in checks] == ["8", "24"]


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
    assert "not queued again from here, the job is CANCELLED" in done.stdout


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


def test_job_of_an_array_ingests_one_source(bench):
    shown = "data:\n  sources:\n    other: {}\ningest:\n  sources:\n    one:\n      table: a\n    two:\n"
    shown += "      table: b\n  fetch:\n    timeout: 3\n"
    done = bench.run("ingest.sh", *ARGUMENTS, "--json", "x", SHOWN=shown, SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 0, done.stderr
    ((config, _),) = bench.calls("-m", "pipeline", "config", "show")
    assert config == ARGUMENTS
    ((ingest, _),) = bench.calls("-m", "pipeline", "ingest")
    assert ingest[:-1] == [*ARGUMENTS, "--json", "x", "--only", "two"]
    assert "source two, number 1 of ingest.sources" in done.stdout

    done = bench.run("ingest.sh", "demo", SHOWN=shown, SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == 2
    message = "--array: job 2 of the array has no source, there are 2: submit with --array=0-1"
    assert message in done.stderr

    done = bench.run("ingest.sh", "demo", SHOWN="", SLURM_ARRAY_TASK_ID="0")
    assert done.returncode == 2
    assert "no sources to divide among the array's jobs" in done.stderr


@pytest.mark.parametrize("name", ["curate", "evaluate", "features"])
def test_others_pass_everything_through(bench, name):
    done = bench.run(f"{name}.sh", *ARGUMENTS, CODES=json.dumps({name: 2}))
    assert done.returncode == 2
    ((arguments, _),) = bench.calls("-m", "pipeline", name)
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
