import json
import subprocess
import sys

import mlflow
import psutil
import pytest
from PIL import Image

from data_prep.errors import ConfigError
from pipeline.healing.events import EventLog
from pipeline.tracking.open import open_tracker
from pipeline.tracking.spool import Spool, unsent
from pipeline.tracking.tracker import NullTracker
from tests.helpers.tiny import tiny_config
from tests.helpers.tracked import begin_run
from tests.helpers.waiting import PATIENCE, PATIENT, eventually


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Also where the run is to go on all is sent before its end."""
    monkeypatch.setattr("pipeline.tracking.spooled.STOPPED_SECONDS", PATIENCE)


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path, PATIENT, "optim.lr=0.25")


def test_other_ranks_and_no_uri_keep_nothing(config, tmp_path):
    assert isinstance(open_tracker(config, is_main=False), NullTracker)
    off = tiny_config(tmp_path, "tracking.uri=")
    nothing = begin_run(off)
    nothing.metrics({"loss": 1.0}, 1)
    nothing.event(None)
    nothing.end()
    assert nothing.run_id is None and not list(tmp_path.iterdir())


def test_a_run_goes_on_under_its_id(config, tmp_path):
    tracker = begin_run(config)
    tracker.metrics({"loss": 2.0}, 1)
    tracker.end("KILLED")
    client = mlflow.MlflowClient(config.tracking.uri)
    assert client.get_run(tracker.run_id).info.status == "KILLED"

    again = begin_run(config, goes_on=True)
    assert again.run_id == tracker.run_id
    eventually(lambda: client.get_run(again.run_id).info.status == "RUNNING")
    again.metrics({"loss": 1.0}, 2)
    again.picture(Image.new("RGB", (8, 8)), "picture.png")
    again.table({"caption": ["a", "b"]}, "table.json")
    file = tmp_path / "notes.txt"
    file.write_text("x")
    again.file(file)
    again.end()

    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.25"
    assert run.data.params["data.sources.laion.path"].endswith("data/laion")
    points = client.get_metric_history(tracker.run_id, "loss")
    assert [(p.step, p.value) for p in points] == [(1, 2.0), (2, 1.0)]
    kept = {f.path for f in client.list_artifacts(tracker.run_id)}
    assert {"picture.png", "table.json", "notes.txt"} <= kept
    (experiment,) = client.search_experiments(
        filter_string=f"name = '{config.tracking.experiment}'"
    )
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_an_event_is_a_point_of_its_curve_and_a_row_of_a_table(config, tmp_path):
    tracker, log = begin_run(config), EventLog(tmp_path / "run")
    tracker.event(log.add("skip", 3, 24, loss=None, suspects=["laion/1"]))
    tracker.event(log.rollback(9, 5, 72, z=40.0))
    tracker.end()
    # By another process, after a restart.
    again, log = begin_run(config, goes_on=True), EventLog(log.path.parent)
    again.event(log.add("skip", 6, 80))
    again.end()

    client = mlflow.MlflowClient(config.tracking.uri)
    points = client.get_metric_history(tracker.run_id, "events/skip")
    assert [(p.step, p.value) for p in points] == [(3, 1), (6, 2)]
    assert [p.step for p in client.get_metric_history(tracker.run_id, "events/rollback")] == [9]
    table = mlflow.artifacts.load_dict(
        f"{client.get_run(tracker.run_id).info.artifact_uri}/events.json"
    )
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(r["kind"], r["step"], r["position"]) for r in rows] == [
        *(("skip", 3, 24), ("rollback", 9, 72), ("skip", 6, 80)),
    ]
    assert json.loads(rows[0]["details"]) == {"loss": None, "suspects": ["laion/1"]}


def test_what_a_restart_computes_again_is_recorded_once(config):
    first = begin_run(config)
    for step in (1, 2, 3, 4):
        first.metrics({"loss": 10.0 - step, "lr": 0.5}, step)
    first.end("KILLED")
    again = begin_run(config, goes_on=True)
    for step in (3, 4, 5):  # from the checkpoint of step 2
        again.metrics({"loss": 10.0 - step, "new": 1.0}, step)
    again.end()
    client = mlflow.MlflowClient(config.tracking.uri)
    loss = client.get_metric_history(first.run_id, "loss")
    assert [(p.step, p.value) for p in loss] == [(s, 10.0 - s) for s in (1, 2, 3, 4, 5)]
    new = client.get_metric_history(first.run_id, "new")
    assert [p.step for p in new] == [3, 4, 5], (
        "a curve that was not there before begins where it does"
    )


def test_what_follows_a_rollback_is_recorded_anew_also_after_a_restart(config, tmp_path):
    log = EventLog(tmp_path / "run")
    tracker = begin_run(config)
    for step in (1, 2, 3):
        tracker.metrics({"loss": 1.0 * step}, step)
    tracker.event(log.rollback(3, 1, 24, z=40.0))
    tracker.metrics({"loss": 20.0}, 2)
    tracker.end("KILLED")
    again = begin_run(config, goes_on=True)
    again.metrics({"loss": 20.0}, 2)  # computed again
    again.metrics({"loss": 30.0}, 3)
    again.end()
    client = mlflow.MlflowClient(config.tracking.uri)
    points = client.get_metric_history(tracker.run_id, "loss")
    told = [(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0), (3, 30.0)]
    # Several may have been told in one millisecond.
    by_time = sorted(points, key=lambda p: (p.timestamp, told.index((p.step, p.value))))
    assert [(p.step, p.value) for p in by_time] == told


def test_a_database_that_is_slow_to_open_keeps_no_run_from_beginning(config, capsys):
    tracker = begin_run(config, start_seconds=0.01)
    assert (
        "does not answer (no answer in 0 s): the run goes on without it" in capsys.readouterr().err
    )
    tracker.metrics({"loss": 1.0}, 1)
    tracker.end()
    client = mlflow.MlflowClient(config.tracking.uri)
    assert client.get_run(tracker.run_id).data.metrics == {"loss": 1.0}


def test_a_deleted_experiment_is_refused_before_the_run_begins(config, tmp_path):
    client = mlflow.MlflowClient(config.tracking.uri)
    client.delete_experiment(client.create_experiment(config.tracking.experiment))
    expected = r"(?s)takes a run \(.*deleted.*name another: tracking.experiment"
    with pytest.raises(ConfigError, match=expected):
        begin_run(config)
    # As the error says; what was refused is not in the way.
    other = config.model_copy(
        update={"tracking": config.tracking.model_copy(update={"experiment": "another"})}
    )
    tracker = begin_run(other)
    tracker.end()
    run = client.get_run(tracker.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "another"
    assert unsent(tmp_path / "flamingo" / "tracking") == 0


def test_a_tracker_that_never_begins_leaves_no_run(config, tmp_path):
    tracker = open_tracker(config, is_main=True)
    assert tracker.run_id is None and tracker.url is None
    tracker.end("FAILED")
    eventually(lambda: tracker.sender.exit_code == 0)
    assert not (tmp_path / "flamingo" / "tracking" / "spool.jsonl").exists()
    client = mlflow.MlflowClient(config.tracking.uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    assert not client.search_runs(experiments)


def test_a_tracker_gets_ready_and_sends_nothing_before_its_run_begins(config, tmp_path):
    folder = tmp_path / "flamingo" / "tracking"
    earlier = begin_run(config)
    earlier.end()
    tracker = open_tracker(config, is_main=True)
    node = Spool(folder, "node_0.jsonl")
    node.append("metrics", step=1, values={"system/node_0/power": 1.0})
    eventually(lambda: is_ready(tracker.sender))
    assert unsent(folder) == 1
    tracker.begin("flamingo")
    tracker.end()
    assert unsent(folder) == 0
    client = mlflow.MlflowClient(config.tracking.uri)
    assert client.get_run(earlier.run_id).data.metrics == {}
    assert client.get_run(tracker.run_id).data.metrics == {"system/node_0/power": 1.0}


def is_ready(sender):
    """Whether it has loaded MLflow and waits for a line."""
    process = psutil.Process(sender.process.pid)
    has_loaded = any("_sqlite3" in row.path for row in process.memory_maps())
    return has_loaded and process.status() == psutil.STATUS_SLEEPING


def test_a_run_tells_what_it_was_made_with(config):
    tracker = begin_run(config)
    tracker.dataset("laion", "0123456789abcdef", "s3://bucket/laion", "training")
    tracker.dataset("laion", "0123456789abcdef", "s3://bucket/laion", "training")
    tracker.end()
    client = mlflow.MlflowClient(config.tracking.uri)
    run = client.get_run(tracker.run_id)
    tags = run.data.tags
    assert tags["version.mlflow"] == mlflow.__version__ and tags["host"]
    assert len(tags["mlflow.source.git.commit"]) == 40 and tags["code.changed"] in ("true", "false")
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("laion", "0123456789abcdef")
    assert [t.value for t in used.tags] == ["training"]
    assert set(run.data.params) >= {"optim.lr", "data.sources.laion.path", "seed"}


def test_runs_of_one_experiment_folder_stand_under_one_parent(config):
    names = {}
    for name in ("flamingo", "evaluate"):
        tracker = begin_run(config, name)
        tracker.end()
        names[name] = tracker.run_id
    below = begin_run(config, "below", parent=names["flamingo"])
    below.end()
    client = mlflow.MlflowClient(config.tracking.uri)
    parents = {n: client.get_run(i).data.tags["mlflow.parentRunId"] for n, i in names.items()}
    assert len(set(parents.values())) == 1
    parent = client.get_run(parents["flamingo"])
    assert (
        parent.info.status == "FINISHED"
        and parent.info.run_name == client.get_run(parent.info.run_id).data.tags["mlflow.runName"]
    )
    assert client.get_run(below.run_id).data.tags["mlflow.parentRunId"] == names["flamingo"]


def test_checkpoints_are_linked_and_the_last_has_a_name_and_an_alias(config):
    tracker = begin_run(config)
    tracker.checkpoint(3, "/a/step_000003", {"held_out_loss": 0.5})
    tracker.checkpoint(6, "s3://a/step_000006", {})
    tracker.register(6, "s3://a/step_000006", "demo.flamingo", "newest")
    tracker.end()
    client = mlflow.MlflowClient(config.tracking.uri, config.tracking.uri)
    run = client.get_run(tracker.run_id)
    models = {m.name: m for m in client.search_logged_models([run.info.experiment_id])}
    assert set(models) == {"step_000003", "step_000006"}
    listed = {output.model_id: output.step for output in run.outputs.model_outputs}
    assert listed == {models["step_000003"].model_id: 3, models["step_000006"].model_id: 6}
    assert {str(m.status) for m in models.values()} == {"READY"}
    assert models["step_000003"].tags["roseate.url"] == "/a/step_000003"
    assert models["step_000003"].source_run_id == tracker.run_id
    version = client.get_model_version_by_alias("demo.flamingo", "newest")
    assert version.tags["roseate.url"] == "s3://a/step_000006"
    assert version.run_id == tracker.run_id


def test_no_secret_reaches_anything_that_is_kept(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3tkey")
    url = "https://me:passw0rd@data.example/t.parquet?token=t0ken123&n=1"
    config = tiny_config(
        tmp_path, PATIENT, f"data.sources.laion.path={url}", "model.vision.path=/v/hf_abcdefgh"
    )
    tracker = begin_run(config)
    file = tmp_path / "config.yaml"
    file.write_text(f"path: {url}\nkey: s3cr3tkey\n")
    tracker.file(file)
    tracker.table({"where": [url]}, "t.json")
    tracker.tags({"from": url})
    tracker.dataset("laion", "00", url, "training")
    tracker.event(
        EventLog(tmp_path / "run").add("config", 1, 1, changed={"path": [url, "s3cr3tkey"]})
    )
    tracker.end()
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and p != file and "run" not in p.parts]
    everything = b"".join(p.read_bytes() for p in kept)
    assert b"data.example" in everything
    for secret in (b"passw0rd", b"t0ken123", b"hf_abcdefgh", b"s3cr3tkey"):
        assert secret not in everything


def test_a_killed_run_leaves_a_spool_that_is_sent_in_its_order(config, tmp_path):
    """The run and its sender are killed; what was told before is there once, as it was told."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from tests.helpers.tracked import begin_run\n"
        "from tests.helpers.tiny import tiny_config\n"
        "tracker = begin_run(tiny_config(Path(sys.argv[1])))\n"
        "print(tracker.sender.process.pid, flush=True)\n"
        "for step in range(1, 100000):\n"
        "    tracker.metrics({'loss': 1 / step, 'lr': step}, step)\n"
        "    print(step, '.' * 500, flush=True)\n"  # a pipe holds little of it: we are not far behind
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    sender = int(run.stdout.readline())
    while int(run.stdout.readline().split()[0]) < 3000:
        pass
    subprocess.run(["kill", "-9", str(run.pid), str(sender)], check=True)
    told = run.communicate()[0].splitlines()
    again = begin_run(config, goes_on=True)
    again.end()
    client = mlflow.MlflowClient(config.tracking.uri)
    points = client.get_metric_history(again.run_id, "loss")
    steps = [p.step for p in sorted(points, key=lambda p: p.step)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= int(told[-1].split()[0])
    assert all(p.value == 1 / p.step for p in points)
