"""Ranks that hang in different ways: all end with exit code 5 in time, and the right one is named."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_prep.ports import held_port
from pipeline.healing import watchdog as module
from pipeline.healing.watchdog import EXIT_HUNG
from tests.helpers.forks import ON_CPU, REPOSITORY, rank_environment

pytestmark = pytest.mark.distributed

SECONDS = 5.0
# What may be added: noticing, reports, and a machine that is busy with other things.
SLACK = 60.0


def be_patient() -> None:
    """Take no rank for silent that only gets no core for two seconds, and wait longer for its report."""
    module.WORDS_LOST, module.REPORT_SECONDS = 20, 15.0


def loop(folder: Path, manner: str, culprit: int) -> None:
    """A loop of a collective a step; from step 5 on the culprit hangs in a manner of its own."""
    import torch
    import torch.distributed as dist

    from pipeline.distributed import DistInfo
    from pipeline.healing.watchdog import Watchdog

    dist.init_process_group("gloo")
    info = DistInfo(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    with Watchdog(info, SECONDS, folder) as watchdog:
        for step in range(8):
            began = time.monotonic()
            watchdog.beat(step, "data")
            mine = step == 5 and info.rank == culprit
            if mine and manner == "sleep":
                stall()
            if mine and manner == "stopped":
                time.sleep(1.5)  # the others are told of the beat
                print(f"{began}: stopping", flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)
            if mine and manner == "locked":
                hold_the_lock()
            watchdog.beat(step, "forward", factor=4 if manner == "slow" else 1)
            if mine and manner == "same place":
                stall()
            if mine and manner == "slow":
                time.sleep(2 * SECONDS)
            if step == 5 and manner == "suspended":
                (folder / f"half_{info.rank}").touch()
                time.sleep(1)
            dist.all_reduce(torch.ones(1))
            time.sleep(0.1)
    if manner == "lasting end" and info.rank == culprit:
        time.sleep(2 * SECONDS)
    (folder / f"ended_{info.rank}").touch()
    dist.destroy_process_group()


def training(root: Path, culprit: int) -> None:
    """A run whose culprit stalls between forward and backward of the third step."""
    from tests.helpers.faults import train_with
    from tests.helpers.tiny import tiny_config

    rank = int(os.environ["RANK"])

    def fault(step, _, __, loss, report, ___):
        if step == 2 and rank == culprit:
            stall()
        return loss, report

    train_with(tiny_config(root, "name=hung", "healing.hang_seconds=15"), fault)


def stall() -> None:
    time.sleep(600)  # the line to be found


def hold_the_lock() -> None:
    """A call of C that keeps Python's lock: no thread of Python runs on."""
    import ctypes

    ctypes.PyDLL(None).sleep(600)


@contextmanager
def running(folder: Path, manner: str, culprit: int, processes: int):
    """The processes; what is left of them is killed."""
    with held_port() as port:
        yield from _run(folder, manner, culprit, processes, port)


def _run(folder, manner, culprit, processes, port):
    group = []
    for rank in range(processes):
        environment = os.environ | ON_CPU | rank_environment(rank, processes, port)
        environment |= {"PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, __file__, str(folder), manner, str(culprit)]
        out = (folder / f"out_{rank}").open("w")
        group.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
    try:
        yield group
    finally:
        for process in group:
            if process.poll() is None:
                process.kill()
                process.wait()


def wait(process, seconds=300):
    return process.wait(timeout=seconds)


def output(folder, rank):
    return (folder / f"out_{rank}").read_text()


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "processes, culprit, manner",
    [(2, 1, "sleep"), (2, 0, "sleep"), (4, 1, "same place")],
)
def test_a_rank_that_hangs_is_named_with_its_stack(tmp_path, processes, culprit, manner):
    with running(tmp_path, manner, culprit, processes) as group:
        assert [wait(process) for process in group] == [EXIT_HUNG] * processes
    told = output(tmp_path, 0)
    phase = "data" if manner == "sleep" else "forward"
    assert "no progress: this is the rank the others wait for" in told
    assert f"  rank {culprit} on " in told and f": step 5, {phase}, for " in told
    assert "; in no collective" in told and "test_hang.py" in told and "in stall" in told
    others = processes - 1
    assert f"  {others} other{'s' if others > 1 else ''} at step 5, forward" in told
    seconds = float(told.split(f"step 5, {phase}, for ")[1].split()[0])
    assert seconds < SECONDS + 4
    line = (
        Path(__file__).read_text().splitlines().index("    time.sleep(600)  # the line to be found")
    )
    stacks = [(tmp_path / "hang" / f"rank_{r:05d}.txt").read_text() for r in range(processes)]
    assert f"line {line + 1} in stall" in stacks[culprit]
    assert sum("in stall" in stack for stack in stacks) == 1
    assert all(f"rank {r} on " in stack for r, stack in enumerate(stacks))
    (event,) = events(tmp_path)
    assert event["kind"] == "hang" and event["step"] == 5
    assert [rank["rank"] for rank in event["details"]["ranks"]] == [culprit]


@pytest.mark.parametrize("processes, culprit", [(4, 3), (2, 0)])
def test_a_stopped_rank_is_named_by_the_others(tmp_path, processes, culprit):
    with running(tmp_path, "stopped", culprit, processes) as group:
        others = [process for rank, process in enumerate(group) if rank != culprit]
        while "stopping" not in output(tmp_path, culprit):
            assert group[culprit].poll() is None, output(tmp_path, culprit)
            time.sleep(0.05)
        # One clock for all processes.
        began = float(output(tmp_path, culprit).partition(": stopping")[0].split()[-1])
        assert [wait(process) for process in others] == [EXIT_HUNG] * len(others)
        assert SECONDS <= time.monotonic() - began < SECONDS + SLACK
    told = output(tmp_path, 1 if culprit == 0 else 0)
    assert f"  rank {culprit} on " in told and ": step 5, data, for " in told
    assert (
        " at least; not heard of since: stopped, gone, or in a call that holds Python's lock"
        in told
    )
    (event,) = events(tmp_path)
    assert [rank["rank"] for rank in event["details"]["ranks"]] == [culprit]


def test_a_rank_that_holds_pythons_lock_is_named_and_leaves_its_stack(tmp_path):
    with running(tmp_path, "locked", 1, 2) as group:
        assert wait(group[0]) == EXIT_HUNG
        path = tmp_path / "hang" / "rank_00001.txt"
        deadline = time.monotonic() + SLACK
        while "in hold_the_lock" not in path.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert group[1].poll() is None
    assert "  rank 1 on " in output(tmp_path, 0)


@pytest.mark.parametrize("manner", ["slow", "lasting end"])
def test_a_run_that_does_not_hang_ends_by_itself(tmp_path, manner):
    with running(tmp_path, manner, 1, 2) as group:
        assert [wait(process) for process in group] == [0, 0], output(tmp_path, 0)
    assert (tmp_path / "ended_0").exists() and (tmp_path / "ended_1").exists()
    assert not list((tmp_path / "hang").iterdir()) and not (tmp_path / "events.jsonl").exists()
    assert "roseate" not in output(tmp_path, 0) + output(tmp_path, 1)


def test_a_suspended_job_that_goes_on_has_not_hung(tmp_path):
    with running(tmp_path, "suspended", 1, 2) as group:
        while not (tmp_path / "half_0").exists() or not (tmp_path / "half_1").exists():
            assert group[0].poll() is None, output(tmp_path, 0)
            time.sleep(0.05)
        for process in group:
            process.send_signal(signal.SIGSTOP)
        time.sleep(SECONDS + 3)
        for process in group:
            process.send_signal(signal.SIGCONT)
        assert [wait(process) for process in group] == [0, 0], output(tmp_path, 0)


def test_a_training_run_that_hangs_ends_by_name(tmp_path, tiny_root):
    with running(tmp_path, f"train {tiny_root}", 1, 2) as group:
        assert [wait(process) for process in group] == [EXIT_HUNG] * 2, output(tmp_path, 0)
    told = output(tmp_path, 0)
    assert "  rank 1 on " in told and ": step 2, forward, for " in told and "in stall" in told
    hang = events(tiny_root / "hung")[-1]
    assert hang["kind"] == "hang" and hang["details"]["ranks"][0]["rank"] == 1


if __name__ == "__main__":
    folder, manner, culprit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    be_patient()
    if manner.startswith("train "):
        training(Path(manner.removeprefix("train ")), culprit)
    else:
        loop(folder, manner, culprit)
