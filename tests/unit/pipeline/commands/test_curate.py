"""The curate command on scenes with copies of held-out ones, with a real MLflow store."""

import json
import shutil
import signal
import subprocess
import sys

import mlflow
import pytest

from pipeline.data.sources import open_sources
from tests.helpers.command import exit_code
from tests.helpers.dataset import write_scenes
from tests.helpers.tiny import tiny_config
from tests.helpers.waiting import PATIENT, eventually

# Scenes are drawn by row: the first of one folder are those of another.
SELECTED = [f"data.sources.{name}.bitmaps=[curated]" for name in ("laion", "cc12m")]


@pytest.fixture
def root(tmp_path):
    write_scenes(tmp_path / "data" / "laion", 30, shard_rows=10)
    write_scenes(tmp_path / "data" / "cc12m", 40, shard_rows=20)
    write_scenes(tmp_path / "data" / "held_out", 5)
    return tmp_path


def curate(monkeypatch, root, *more):
    path = root / "summary.json"
    where = ("demo", f"root={root}", PATIENT)
    code = exit_code(monkeypatch, "curate", *where, *more, "--workers", 2, "--json", path)
    return code, json.loads(path.read_text()) if path.exists() else None


def test_what_stays_is_what_training_reads_and_mlflow_shows(monkeypatch, root, capsys):
    code, summary = curate(monkeypatch, root, *SELECTED, "curate.same_text=3")
    assert code == 0 and json.loads(capsys.readouterr().out) == summary
    laion, cc12m = (summary["sources"][name] for name in ("laion", "cc12m"))
    assert laion["left_out"]["apart_from"] == cc12m["left_out"]["apart_from"] == 5
    assert cc12m["left_out"]["similar_images"] == 25, "those of laion that are not held out"
    assert summary["use"] == SELECTED
    config = tiny_config(root, *SELECTED)
    lengths = {name: len(dataset) for name, dataset in open_sources(config.data).items()}
    assert lengths == {"laion": laion["kept"], "cc12m": cc12m["kept"]}

    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    run = client.get_run(summary["mlflow_run_id"])
    assert (run.info.run_name, run.info.status) == ("curate", "FINISHED")
    assert run.data.metrics["curate/laion/kept"] == laion["kept"]
    assert run.data.metrics["curate/cc12m/left_out/similar_images"] == 25
    assert run.data.params["curate.same_text"] == "3"
    assert {d.dataset.name for d in run.inputs.dataset_inputs} == {"laion", "cc12m"}
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["curation.html"]
    assert client.get_run(run.data.tags["mlflow.parentRunId"]).info.run_name == root.name


def test_a_dry_run_leaves_the_page_alone(monkeypatch, root):
    code, summary = curate(monkeypatch, root, "--dry-run")
    assert code == 0 and not summary["written"] and summary["mlflow_run_id"] is None
    assert (root / "curation" / "curation.html").is_file()
    assert not list(root.glob("data/*/bitmaps")) and not (root / "mlflow.db").exists()


def test_killed_and_run_again_it_keeps_the_same(monkeypatch, root):
    write_scenes(root / "data" / "large", 600, shard_rows=20)
    large = f"data.sources={{large: {{path: {root}/data/large}}}}"
    curate(monkeypatch, root, large, "tracking.uri=", "curate.name=whole")
    command = [sys.executable, "-m", "pipeline", "curate", "demo", f"root={root}", large]
    facts = (root / "curation" / "facts").glob
    for _ in range(5):  # on a busy machine it may end before it is killed
        shutil.rmtree(root / "curation")
        process = subprocess.Popen([*command, "tracking.uri=", "--workers", "1"])
        eventually(lambda p=process: any(facts("*/*.npy")) or p.poll() is not None)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            break
    assert process.returncode == -signal.SIGKILL and any(facts("*/*.npy"))
    code, summary = curate(monkeypatch, root, large, "tracking.uri=")
    assert code == 0 and summary["mlflow_run_id"] is None
    one, two = (root / "data" / "large" / "bitmaps" / f"{n}.npy" for n in ("whole", "curated"))
    assert one.read_bytes() == two.read_bytes()


def test_further_folders_to_stay_apart_from(monkeypatch, root):
    write_scenes(root / "evaluation", 12)
    apart = f"curate.apart_from=[{root}/evaluation]"
    _, summary = curate(monkeypatch, root, "--dry-run", apart)
    assert summary["sources"]["laion"]["left_out"]["apart_from"] == 12


def test_all_that_is_wrong_is_told_at_once(monkeypatch, root, capsys):
    shutil.rmtree(root / "data" / "cc12m")
    code, _ = curate(monkeypatch, root, f"curate.apart_from=[{root}/nothing]", *SELECTED)
    told = capsys.readouterr().err
    assert code == 2 and "2 problems" in told
    assert "data.sources.cc12m = " in told and "curate.apart_from.0 = " in told
    code, _ = curate(monkeypatch, root, "tracking.uri=htp://nowhere")
    assert code == 2 and "tracking.uri" in capsys.readouterr().err, "before anything is read"
    assert not list(root.glob("curation/facts/*"))


def test_no_datasets_are_refused(monkeypatch, root, capsys, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("extends: demo\n")
    assert exit_code(monkeypatch, "curate", path, f"root={root}", "data.sources=null") == 2
    assert "data.sources" in capsys.readouterr().err
    assert exit_code(monkeypatch, "curate", path, f"root={root}", "data.sources={}") == 2
    assert "names at least one dataset" in capsys.readouterr().err
