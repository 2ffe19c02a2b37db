"""The demo made smaller, by the command the README names; then the commands that go on from it."""

import json
import os
import subprocess
import sys

import mlflow
import pytest
from PIL import Image

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

SMALL = (
    "train.steps=8",
    "train.log_every_steps=2",
    "train.validate_every_steps=4",
    "batch={global_size: 16, micro_size: 8}",
    "evaluation.max_samples=32",
)


def roseate(*arguments, expect=0):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == expect, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    done = roseate("demo", f"root={root}", *SMALL, "--scenes", 300, "--held-out", 40)
    return root, done


def test_summary_accounts_for_every_row_and_every_figure(demo):
    root, done = demo
    summary = json.loads((root / "summary.json").read_text())
    sources = summary["ingest"]["sources"]
    assert sources["laion"]["rows"] + sources["cc12m"]["rows"] == 300
    assert sources["held_out"]["statuses"] == {"ok": 40}
    for source in sources.values():
        assert sum(source["statuses"].values()) == source["rows"]
    for name in ("http_404", "wrong_content_type", "undecodable"):
        assert any(source["statuses"].get(name) for source in sources.values()), name
    assert summary["train"]["world_size"] == 2
    assert summary["train"]["optimizer_state_bytes"]["uint8"] > 0
    figures = summary["evaluate"]
    assert figures["held_out_loss"] == pytest.approx(summary["train"]["held_out_loss"], rel=0.2)
    assert 0 <= figures["attribute_accuracy_zero_image"] <= figures["attribute_accuracy_chance"]
    assert "mlflow ui" in done.stderr
    printed = json.loads(done.stdout)
    assert printed["attribute_accuracy"] == figures["attribute_accuracy"]
    assert printed["mlflow_run_id"] == summary["train"]["mlflow_run_id"]


def test_page_shows_figures_rows_and_captions(demo):
    root, done = demo
    page = (root / "report.html").read_text()
    assert f"report     {root / 'report.html'}" in done.stderr
    for text in ("attributes named rightly", "http_404", "data:image/png;base64", "flamingo"):
        assert text in page, text
    assert (root / "data/laion/report.html").is_file()
    assert "href='data/laion/report.html'" in page


def test_run_is_in_mlflow_with_pictures(demo):
    root, _ = demo
    summary = json.loads((root / "summary.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    run = client.get_run(summary["train"]["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["held_out_loss_zero_image"] > 0
    assert run.data.metrics["evaluation/attribute_accuracy"] >= 0
    names = {f.path for f in client.list_artifacts(run.info.run_id)}
    wanted = {"captions.png", "captions.json", "summary.json", "config.yaml", "deepspeed.json"}
    assert wanted <= names


def test_running_again_redoes_nothing(demo):
    root, first = demo
    kept = ("data/laion/shards/000000.tar", "vision/model.safetensors", "language/config.json")
    before = [(root / name).stat().st_mtime_ns for name in kept]
    again = roseate("demo", f"root={root}", *SMALL, "--scenes", 300, "--held-out", 40)
    assert [(root / name).stat().st_mtime_ns for name in kept] == before
    assert again.stderr.count("trained already") == 3
    one, two = json.loads(first.stdout), json.loads(again.stdout)
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    ingest = json.loads((root / "summary.json").read_text())["ingest"]
    assert ingest["sources"]["laion"]["resumed_shards"] > 0


def test_generate_captions_a_file_and_names_a_bad_one(demo, tmp_path):
    root, _ = demo
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (64, 64), "red").save(good)
    bad.write_bytes(b"not an image")
    done = roseate("generate", "demo", good, f"root={root}", *SMALL)
    assert set(json.loads(done.stdout)["captions"]) == {str(good)}
    assert "can be decoded" in roseate("generate", "demo", bad, f"root={root}", expect=2).stderr
    missing = roseate("generate", "demo", tmp_path / "no.png", f"root={root}", expect=2)
    assert "is an image file" in missing.stderr


def test_evaluate_without_a_checkpoint_is_refused(demo):
    root, _ = demo
    done = roseate("evaluate", "demo", f"root={root}", "name=nothing", expect=2)
    assert "train first" in done.stderr
