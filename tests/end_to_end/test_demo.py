"""The demo made smaller, by the command the README names; then the commands that go on from it."""

import json

import mlflow
import pytest
from PIL import Image

from tests.helpers.command import run

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

SMALL = (
    "train.steps=8",
    "train.log_every_steps=2",
    "train.validate_every_steps=4",
    "batch={global_size: 16, micro_size: 8}",
    "evaluation.max_samples=32",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    done = run("demo", f"root={root}", *SMALL, "--scenes", 300, "--held-out", 40)
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
    database = f"sqlite:///{root}/mlflow.db"
    client = mlflow.MlflowClient(database, database)
    trained = client.get_run(summary["train"]["mlflow_run_id"])
    assert trained.info.status == "FINISHED"
    assert trained.data.metrics["held_out_loss_zero_image"] > 0
    names = {f.path for f in client.list_artifacts(trained.info.run_id)}
    assert {"summary.json", "config.yaml", "deepspeed.json", "events.json"} <= names
    curves = trained.data.metrics.keys()
    parts = {"loss/laion", "loss/cc12m", "grad_norm/experts", "gates/block_0/attention", "mfu"}
    parts |= {"router/block_1/expert_3", "router/block_1/entropy", "tokens_per_second"}
    assert parts <= curves, parts - curves
    used = {(d.dataset.name, t.value) for d in trained.inputs.dataset_inputs for t in d.tags}
    assert used == {("laion", "training"), ("cc12m", "training"), ("held_out", "validation")}
    version = client.get_model_version_by_alias("demo.flamingo", "newest")
    assert version.run_id == trained.info.run_id
    assert version.tags["roseate.url"].endswith("checkpoints/step_000008")
    below = client.get_run(summary["evaluate"]["mlflow_run_id"])
    assert below.data.tags["mlflow.parentRunId"] == trained.info.run_id
    assert below.data.metrics["evaluation/captioning/attribute_accuracy"] >= 0
    kept = {f.path for f in client.list_artifacts(below.info.run_id, "evaluation/step_000008")}
    pictures = {"captions.png", "page.html", "captioning.json"}
    assert {f"evaluation/step_000008/{name}" for name in pictures} <= kept
    root_run = client.get_run(trained.data.tags["mlflow.parentRunId"])
    found = client.search_runs([trained.info.experiment_id])
    children = {r.info.run_name for r in found if _parent(r) == root_run.info.run_id}
    assert children == {"ingest", "vision_run", "language_run", "flamingo"}


def _parent(run):
    return run.data.tags.get("mlflow.parentRunId")


def test_running_again_redoes_nothing(demo):
    root, first = demo
    kept = ("data/laion/shards/000000.tar", "vision/model.safetensors", "language/config.json")
    before = [(root / name).stat().st_mtime_ns for name in kept]
    again = run("demo", f"root={root}", *SMALL, "--scenes", 300, "--held-out", 40)
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
    done = run("generate", "demo", good, f"root={root}", *SMALL)
    assert set(json.loads(done.stdout)["captions"]) == {str(good)}
    refused = run("generate", "demo", bad, f"root={root}", expect=2).stderr
    assert f"{bad}" in refused and "rule: is an image (UnidentifiedImageError)\n" in refused
    missing = run("generate", "demo", tmp_path / "no.png", f"root={root}", expect=2)
    assert "rule: is a file\n" in missing.stderr


def test_evaluate_without_a_checkpoint_is_refused(demo):
    root, _ = demo
    done = run("evaluate", "demo", f"root={root}", "name=nothing", expect=2)
    assert "train first" in done.stderr
