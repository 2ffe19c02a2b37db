"""Which ends of a training start it again, and when that stops; a stand-in ends as it is told to."""

import json
import os
import shutil

import pytest

from tests.helpers.bench import SLURM, Bench


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def train(bench, codes: list[int], progress: list[int] = (), **environment: str):
    """Run pretrain.sh with a training whose attempts end with these codes, at these checkpoints."""
    lists = {"CODES": json.dumps({"train": codes}), "PROGRESS": json.dumps(list(progress))}
    return bench.run("pretrain.sh", "demo", "--fresh", **lists, **environment)


def test_crash_starts_again_at_another_port_and_goes_on(bench):
    done = train(bench, [137, 1, 5, 139, 0], [10, 20, 30, 40, 50])
    assert done.returncode == 0, done.stderr
    starts = bench.calls("-m", "pipeline", "train")
    assert len({environment["MASTER_PORT"] for _, environment in starts}) == 5
    assert not bench.requeued()
    assert len(bench.calls("-m", "pipeline", "config", "check")) == 1
    # A second --fresh would throw away what the first has reached.
    assert [arguments for arguments, _ in starts] == [["demo", "--fresh"], *[["demo"]] * 4]


def test_fresh_stays_until_there_is_a_checkpoint(bench):
    assert train(bench, [1, 0]).returncode == 0
    starts = bench.calls("-m", "pipeline", "train")
    assert [arguments for arguments, _ in starts] == [["demo", "--fresh"]] * 2


@pytest.mark.parametrize("code", [2, 3, 4])
def test_verdicts_of_the_training_are_final(bench, code):
    done = train(bench, [code], [10])
    assert done.returncode == code
    assert len(bench.calls("-m", "pipeline", "train")) == 1
    assert not bench.requeued()


def test_three_attempts_without_progress_end_the_job(bench):
    done = train(bench, [1, 137, 1, 1], [12, 12, 12])
    # The first began at 0 and reached 12, the next two began there; a third may still get on.
    assert done.returncode == 4
    assert len(bench.calls("-m", "pipeline", "train")) == 4
    assert (
        "no progress: 3 attempts in a row began at step 12, and none wrote a newer" in done.stdout
    )
    assert "ended" in done.stdout and "exit code 137, killed by signal 9" in done.stdout
    assert "started" in done.stdout and "restart 0, nodes n[1-2]" in done.stdout
    assert "lower checkpoint.every_steps" in done.stdout
    assert f"on at step 12; the state of this job is in {bench.folder}/jobs" in done.stdout


@pytest.mark.parametrize("state", ["DOWN", "DOWN+NOT_RESPONDING", "MIXED+DRAIN", "FAIL"])
def test_ailing_nodes_are_left(bench, state):
    done = train(bench, [1], NODE_STATE=state)
    assert done.returncode == 0
    assert bench.requeued()
    assert "a node is down or drained; queued again, restart 1 of 20" in done.stdout
    assert len(bench.calls("-m", "pipeline", "train")) == 1


def silence(bench) -> None:
    """Let the next question whether all nodes are there fail."""
    (bench.folder / "silent").touch()


def test_silent_nodes_are_waited_for(bench):
    silence(bench)
    done = train(bench, [0])
    assert done.returncode == 0
    assert done.stdout.count("a node does not answer: waiting for it, or for SLURM to notice") == 1
    assert len(bench.calls("-m", "pipeline", "train")) == 1


def test_silent_node_that_slurm_knows_of_is_left(bench):
    silence(bench)
    done = train(bench, [0], NODE_STATE="DOWN+NOT_RESPONDING")
    assert "a node is down or drained; queued again" in done.stdout
    assert bench.calls("-m", "pipeline", "train") == []
    assert not attempts(bench).read_text(), "no attempt has begun"


def test_silent_node_of_a_job_that_slurm_moves_is_left(bench):
    silence(bench)
    done = train(bench, [0], STATE="COMPLETING")
    assert (
        "a node does not answer; not queued again from here, the job is COMPLETING" in done.stdout
    )
    assert bench.calls("-m", "pipeline", "train") == []


def test_patience_with_silent_nodes_ends(bench):
    silence(bench)
    script = (SLURM / "job.sh").read_text()
    assert "NODE_PATIENCE_SECONDS=900" in script
    home = bench.folder / "home"
    shutil.copytree(SLURM, home / "slurm")
    (home / "slurm" / "job.sh").write_text(script.replace("SECONDS=900", "SECONDS=0"))
    done = train(bench, [0], ROSEATE_HOME=str(home))
    assert "a node did not answer for 0 s; queued again, restart 1 of 20" in done.stdout


def test_crash_of_a_cancelled_job_starts_nothing(bench):
    done = train(bench, [1], STATE="COMPLETING")
    assert done.returncode == 75
    assert "crashed while it was to stop; not queued again from here" in done.stdout
    assert not bench.requeued()


def attempts(bench):
    return bench.folder / "jobs" / str(os.getpid()) / "attempts"


def write_attempts(bench, *lines: str) -> None:
    attempts(bench).parent.mkdir(parents=True, exist_ok=True)
    attempts(bench).write_text("".join(f"{line}\n" for line in lines))


def test_jobs_moved_from_outside_are_not_to_blame(bench):
    write_attempts(bench, *["0 started x", "0 moved x"] * 9)
    assert train(bench, [0] * 1).returncode == 0


def test_jobs_are_not_moved_for_ever(bench):
    write_attempts(bench, *["0 started x", "0 moved x"] * 10)
    done = train(bench, [0])
    assert done.returncode == 4
    assert "no progress: 10 attempts in a row began at step 0" in done.stdout


def test_lost_attempts_count(bench):
    write_attempts(bench, *["0 started a"] * 3)
    done = train(bench, [0])
    assert done.returncode == 4
    assert "0 lost without a word of its end: a node failed" in attempts(bench).read_text()
    assert "lost without a word of its end: a node failed, or the job was killed" in done.stdout


def test_progress_forgives(bench):
    write_attempts(bench, *["0 started a", "0 ended b"] * 3, "7 started a", "7 ended b")
    attempts(bench).with_name("progress").write_text("")  # killed while it wrote: 7 still holds
    done = train(bench, [1, 1, 1])
    assert done.returncode == 4
    assert "no progress: 3 attempts in a row began at step 7" in done.stdout
    assert len(bench.calls("-m", "pipeline", "train")) == 2
