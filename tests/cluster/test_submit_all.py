"""From URL tables to captions by one command, on a real SLURM with two nodes."""

import json
import re

import pytest

from data_prep.examples.tables import build_scene_web
from data_prep.examples.web import SceneWeb
from data_prep.schema import load_manifest
from tests.helpers.cluster import REPOSITORY
from tests.helpers.tiny import OVERRIDES, write_towers

pytestmark = pytest.mark.cluster

SUBMIT_ALL = str(REPOSITORY / "slurm" / "submit_all.sh")
SMALL = ("ingest.shard_rows=10", "ingest.image.size=64", "evaluation.pictures=1")
SELECTED = [f"data.sources.{name}.bitmaps=[curated]" for name in ("laion", "cc12m")]


def test_from_tables_to_captions(cluster, tmp_path):
    write_towers(tmp_path)
    web = SceneWeb(tmp_path / "web")
    build_scene_web(web.folder, scenes=100, held_out=24, seed=0, base_url=web.base_url)
    run = ("demo", f"root={tmp_path}", *OVERRIDES, *SMALL, *SELECTED)
    run += ("curate.characters={max: 60}", f"data.features={tmp_path}/features")
    nodes = ("--sbatch", "ingest=--nodes=1", "--sbatch", "curate=--nodes=2 --cpus-per-task=1")
    options = ("--array", *nodes, "--curate", "--features")
    with web:
        table = cluster.run(SUBMIT_ALL, *options, *run, cwd=tmp_path)
        rows = [line.split() for line in table.splitlines()]
        stages = ["ingest", "curate", "features", "pretrain", "evaluate"]
        assert [row[0] for row in rows] == ["stage", *stages]
        jobs = {stage: job for stage, job, _ in rows[1:]}
        assert [row[2] for row in rows[1:]] == ["-", *list(jobs.values())[:-1]]
        cluster.wait(jobs["evaluate"], 500)

    logs = {path.name: path.read_text() for path in sorted(tmp_path.glob("*.log"))}
    states = [cluster.job_state(job) for job in jobs.values()]
    assert states == ["COMPLETED"] * 5, "\n".join(logs.values())
    ingests = "".join(text for name, text in logs.items() if name.startswith("ingest"))
    for number, source in enumerate(("laion", "cc12m", "held_out")):
        assert f"source {source}, number {number} of ingest.sources" in ingests
        assert load_manifest(tmp_path / "data" / source, "x").rows in (24, 50)
    curated = logs[f"curate-{jobs['curate']}.log"]
    summary = json.loads(curated[curated.index("\n{\n") : curated.rindex("\n}\n") + 3])
    for name, source in summary["sources"].items():
        assert 0 < source["kept"] < source["samples"] and source["left_out"]["characters"], name
        assert (tmp_path / "data" / name / "bitmaps" / "curated.npy").exists()
    assert '"written": ' in logs[f"features-{jobs['features']}.log"]
    summary = json.loads((tmp_path / "flamingo" / "summary.json").read_text())
    assert (summary["finished"], summary["world_size"]) == (True, 2)
    assert re.search(r'"held_out_loss": \d', logs[f"evaluate-{jobs['evaluate']}.log"])


def test_failed_stage_takes_those_behind_it_along(cluster, tmp_path):
    table = cluster.run(SUBMIT_ALL, "demo", f"root={tmp_path}", cwd=tmp_path)
    ingest, pretrain, evaluate = (line.split()[1] for line in table.splitlines()[1:])
    cluster.wait(evaluate)
    assert cluster.job_state(ingest) == "FAILED"
    assert cluster.job_state(pretrain) == cluster.job_state(evaluate) == "CANCELLED"
    assert "laion.parquet" in (tmp_path / f"ingest-{ingest}.log").read_text()
    assert not list(tmp_path.glob("pretrain-*.log"))
