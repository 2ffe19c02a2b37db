"""The batch scripts on a real SLURM with two nodes, one task each: nothing is replaced."""

import json
import re
import time
from pathlib import Path

import pytest

from data_prep.examples.tables import build_scene_web
from data_prep.examples.web import SceneWeb
from data_prep.schema import load_manifest
from tests.helpers.stored_runs import run_ids, stored_run
from tests.helpers.tiny import OVERRIDES

pytestmark = pytest.mark.cluster


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

    figures = []
    for nodes in (1, 2):
        told = root / f"evaluated_{nodes}.json"
        more = ("evaluation.pictures=1", "--json", str(told))
        job = cluster.submit("evaluate.sh", *arguments, *more, options=(f"--nodes={nodes}",))
        ended = cluster.wait(job)
        assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
        found = json.loads(told.read_text())
        figures.append({k: v for k, v in found.items() if isinstance(v, float)})
    assert figures[0] and figures[1] == pytest.approx(figures[0], rel=1e-9)


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
