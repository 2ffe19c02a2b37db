"""The batch scripts on a real SLURM with two nodes, one task each: nothing is replaced."""

import json
import re
import sqlite3
import time
from pathlib import Path

import pytest

from data_prep.examples.tables import build_scene_web
from data_prep.examples.web import SceneWeb
from data_prep.schema import load_manifest
from tests.helpers.dataset import write_scenes
from tests.helpers.tiny import OVERRIDES, write_towers

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An experiment with towers and datasets; runs in it need names of their own."""
    folder = tmp_path_factory.mktemp("experiment")
    write_towers(folder)
    for name in ("laion", "cc12m"):
        write_scenes(folder / "data" / name, 40)
    write_scenes(folder / "data" / "held_out", 24, held_out=True)
    return folder


def run_ids(log: str) -> list[str]:
    return re.findall(r"MLflow run (\w{32}) ", log)


def stored_run(root: Path, run_id: str) -> tuple[str, list[int]]:
    """Status of a run in the SQLite store, and the steps of its loss, in order."""
    with sqlite3.connect(root / "mlflow.db") as store:
        found = store.execute("SELECT status FROM runs WHERE run_uuid = ?", [run_id]).fetchall()
        assert len(found) == 1, f"run {run_id} is not in {root}/mlflow.db"
        query = "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'loss' ORDER BY step"
        return found[0][0], [row[0] for row in store.execute(query, [run_id])]


def test_ingest_on_two_nodes(cluster, tmp_path):
    web = SceneWeb(tmp_path / "web")
    build_scene_web(web.folder, scenes=100, held_out=10, seed=0, base_url=web.base_url)
    with web:
        job = cluster.submit(
            "ingest.sh", "demo", f"root={tmp_path}", "ingest.shard_rows=10", "ingest.image.size=32"
        )
        ended = cluster.wait(job)

    assert ended.state == "COMPLETED", ended.log + cluster.logs_below(job)
    assert ended.exit_code == 0
    assert "all 2 Ray nodes joined" in ended.log
    for source, rows in (("laion", 50), ("cc12m", 50), ("held_out", 10)):
        manifest = load_manifest(tmp_path / "data" / source, f"data.sources.{source}.path")
        assert manifest.rows == rows
        assert sum(manifest.statuses.values()) == rows
    assert not Path(f"/tmp/ray-{job}").exists(), "Ray's temporary folder stayed behind"


def test_pretrain_and_evaluate(cluster, root):
    arguments = ("demo", f"root={root}", "name=whole", *OVERRIDES)
    ended = cluster.wait(cluster.submit("pretrain.sh", *arguments))

    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    assert "2 tasks" in ended.log
    (run_id,) = run_ids(ended.log)
    assert stored_run(root, run_id) == ("FINISHED", [1, 2, 3, 4, 5, 6])
    assert json.loads((root / "whole" / "summary.json").read_text())["world_size"] == 2

    ended = cluster.wait(cluster.submit("evaluate.sh", *arguments, "evaluation.pictures=1"))
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log


def test_stop_request_saves_requeues_and_goes_on(cluster, root):
    steps = 300
    length = (f"train.steps={steps}", f"train.validate_every_steps={steps}")
    arguments = ("demo", f"root={root}", "name=interrupted", *OVERRIDES, *length)
    job = cluster.submit("pretrain.sh", *arguments)
    cluster.wait_for_log(job, "MLflow run ")
    time.sleep(1)  # into the loop, if it is not there yet; a request before it counts as well
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    ended = cluster.wait(job)

    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    assert ended.log.count("queued again") == 1, ended.log
    stopped_at = int(re.search(r'"stopped_at": (\d+)', ended.log)[1])
    assert 0 < stopped_at < steps
    resumed_at = re.findall(r'"resumed_at": (\w+)', ended.log)
    assert resumed_at == ["null", str(stopped_at)]

    first, second = run_ids(ended.log)
    assert first == second
    status, logged = stored_run(root, first)
    assert status == "FINISHED"
    assert logged == list(range(1, steps + 1)), "every step once, none lost at the seam"
    assert json.loads((root / "interrupted" / "summary.json").read_text())["finished"] is True


def test_cancelled_job_stays_cancelled(cluster, root):
    job = cluster.submit(
        "pretrain.sh", "demo", f"root={root}", "name=cancelled", *OVERRIDES, "train.steps=100000"
    )
    cluster.wait_for_log(job, "MLflow run ")
    cluster.run("scancel", job)
    ended = cluster.wait(job)

    assert ended.state == "CANCELLED"
    assert "queued again, restart" not in ended.log


def test_mistakes_end_the_job_before_any_task_starts(cluster, root):
    ended = cluster.wait(
        cluster.submit("pretrain.sh", "demo", f"root={root}", "batch.global_size=7", "optim.lrr=1")
    )
    assert (ended.state, ended.exit_code) == ("FAILED", 2)
    assert "optim.lrr" in ended.log
    assert "tasks, first at" not in ended.log
