"""Training jobs that lose a rank, a node or their way, on a real SLURM with two nodes."""

import os
import random
import re
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file, save_file

from tests.helpers.dataset import write_dataset, write_scenes
from tests.helpers.stored_runs import curve, losses, run_ids, stored_run
from tests.helpers.tiny import OVERRIDES

NUM_KILLS = int(os.environ.get("ROSEATE_KILLS", "3"))
STEPS = max(200, 60 * NUM_KILLS)  # room for as many kills, each after a checkpoint of its own
LENGTH = (
    f"train.steps={STEPS}",
    f"train.validate_every_steps={STEPS}",
    "checkpoint.every_steps=20",
)
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600 + 60 * NUM_KILLS)]


def arguments(root, name: str, *more: str) -> tuple[str, ...]:
    return ("demo", f"root={root}", f"name={name}", *OVERRIDES, *LENGTH, *more)


@pytest.fixture(scope="module")
def undisturbed(cluster, root):
    """Loss and norm of the gradient by step, of a run that nothing happens to."""
    job = cluster.submit("pretrain.sh", *arguments(root, "undisturbed"))
    ended = cluster.wait(job, 300 + STEPS)
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    (run_id,) = run_ids(ended.log)
    assert stored_run(root, run_id) == ("FINISHED", list(range(1, STEPS + 1)))
    return curve(root, run_id), curve(root, run_id, "grad_norm")


def check_same(root, ended, undisturbed) -> None:
    """Ended well, in one MLflow run, whose curves are those of the undisturbed one to the last bit."""
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    (run_id,) = set(run_ids(ended.log))
    assert stored_run(root, run_id)[0] == "FINISHED"
    loss, norm = undisturbed
    assert curve(root, run_id) == loss
    assert curve(root, run_id, "grad_norm") == norm


def test_killed_ranks_start_again_on_the_same_nodes(cluster, root, undisturbed):
    """Random kills, each after a checkpoint newer than at the last: ROSEATE_KILLS=50 for a long day."""
    job = cluster.submit("pretrain.sh", *arguments(root, "killed"))
    draw, reached = random.Random(NUM_KILLS), 0
    for _ in range(NUM_KILLS):
        cluster.wait_until(lambda reached=reached: cluster.progress(job) > reached, job=job)
        time.sleep(draw.random() / 2)
        reached = cluster.progress(job)
        cluster.kill_rank(job, draw.randrange(2))
    ended = cluster.wait(job, 300 + STEPS)

    check_same(root, ended, undisturbed)
    assert ended.log.count("starting the tasks again on the same nodes") == NUM_KILLS
    assert "restart 0" in ended.log and "restart 1" not in ended.log, "no wait in the queue"
    ports = re.findall(r"tasks, first at 127.0.0.1:(\d+)", ended.log)
    assert len(set(ports)) == NUM_KILLS + 1


def test_frozen_rank_is_found_and_all_start_again(cluster, root, undisturbed):
    """A rank that neither works nor dies: the watchdog ends all with exit code 5, which is a crash."""
    job = cluster.submit("pretrain.sh", *arguments(root, "frozen", "healing.hang_seconds=10"))
    cluster.wait_until(lambda: cluster.progress(job) > 0, job=job)
    os.kill(cluster.ranks(job)[1], signal.SIGSTOP)
    ended = cluster.wait(job)

    check_same(root, ended, undisturbed)
    assert ended.log.count("training ended with exit code") == 2
    assert ended.log.count("starting the tasks again on the same nodes") == 1
    assert "rank 1" in ended.log and "ending with exit code 5" in ended.log


def test_lost_node_is_waited_for(cluster, root, undisturbed):
    """All nodes are needed: the job goes on when the lost one is back."""
    job = cluster.submit("pretrain.sh", *arguments(root, "lost"))
    cluster.wait_until(lambda: cluster.progress(job) > 0, job=job)
    cluster.kill_node("n2")
    try:
        # Only out of "not responding" (the state in between) does SLURM call a node down.
        cluster.wait_until(lambda: cluster.job_state(job) == "PENDING", job=job)
        cluster.wait_until(lambda: "down" in cluster.node_state("n2"), job=job)
    finally:
        cluster.start_slurmd("n2")
    ended = cluster.wait(job)

    check_same(root, ended, undisturbed)
    assert "restart 1, nodes" in ended.log


def test_lost_node_is_left_for_the_others(cluster, root, undisturbed):
    """With one node fewer, which somebody has to allow; the batch script was on the one that is lost."""
    one = arguments(root, "left", "engine.expert_parallel=1")
    job = cluster.submit("pretrain.sh", *one)
    cluster.wait_until(lambda: cluster.progress(job) > 0, job=job)
    cluster.kill_node("n1")
    try:
        cluster.wait_until(lambda: cluster.job_state(job) == "PENDING", job=job)
        cluster.run("scontrol", "update", f"JobId={job}", "NumNodes=1-1", "NumTasks=1")
        ended = cluster.wait(job)
    finally:
        cluster.start_slurmd("n1")

    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    starts = re.findall(
        r"restart (\d), nodes (\S+)\n(?:.*\n)+?.* from step (\d+): (\d) tasks", ended.log
    )
    assert [start[1] for start in starts] == ["n[1-2]", "n2"], ended.log
    assert [start[3] for start in starts] == ["2", "1"]
    assert int(starts[1][2]) > 0
    (run_id,) = set(run_ids(ended.log))
    assert stored_run(root, run_id)[0] == "FINISHED"
    reached = {step: loss for step, loss, _ in losses(root, run_id)}
    assert list(reached) == list(range(1, STEPS + 1))
    # Sums over other numbers of ranks round differently; and experts on every rank, or divided.
    assert list(reached.values()) == pytest.approx(list(undisturbed[0].values()), rel=0.02)


def test_crash_before_any_checkpoint_ends_the_job(cluster, root):
    """A shard that is gone: every rank stops with OSError, as often as it is started."""
    folder = root / "data" / "gone"
    write_scenes(folder, 40)
    (folder / "shards" / "000000.tar").unlink()
    sources = f"data.sources={{gone: {{path: {folder}}}}}"
    ended = cluster.wait(cluster.submit("pretrain.sh", *arguments(root, "gone", sources)))

    assert (ended.state, ended.exit_code) == ("FAILED", 4), ended.log
    assert "no progress: 3 attempts in a row began at step 0" in ended.log
    assert ended.log.count("tasks, first at") == 3
    assert "FileNotFoundError" in ended.log


def test_causes_are_told_once(cluster, root, undisturbed):
    """Exit codes that no other attempt would change: another tower (2), a dataset of broken images (3)."""
    other = root / "other_language"
    shutil.copytree(root / "language", other)
    weights = load_file(other / "model.safetensors")
    save_file({n: w + 1 for n, w in weights.items()}, other / "model.safetensors", {"format": "pt"})
    changed = arguments(root, "undisturbed", f"model.language.path={other}")

    def broken(row: int) -> dict[str, bytes]:
        return {"jpg": b"no image", "txt": b"a caption", "json": b"{}"}

    write_dataset(root / "data" / "broken", [40], broken)
    sources = f"data.sources={{broken: {{path: {root / 'data' / 'broken'}}}}}"
    spent = arguments(root, "spent", sources)
    for run, code, cause in ((changed, 2, "model.language"), (spent, 3, "roseate: ")):
        ended = cluster.wait(cluster.submit("pretrain.sh", *run))
        assert (ended.state, ended.exit_code) == ("FAILED", code), ended.log
        assert ended.log.count("tasks, first at") == 1, ended.log
        assert f"training ended with exit code {code}" in ended.log
        assert cause in ended.log


def test_job_moved_before_its_first_checkpoint_is_not_to_blame(cluster, root):
    job = cluster.submit("pretrain.sh", *arguments(root, "moved", "train.steps=6"))
    cluster.wait_for_log(job, "tasks, first at")
    cluster.run("scontrol", "requeue", job)
    ended = cluster.wait(job)

    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    assert "restart 1, nodes" in ended.log
    noted = [line.split()[:2] for line in cluster.attempts(job)]
    assert ["0", "moved"] in noted and noted.count(["0", "started"]) == 2, noted
