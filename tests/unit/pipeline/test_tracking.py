import mlflow
import pytest
from PIL import Image

from pipeline.tracking import NullTracker, open_tracker
from tests.helpers.tiny import tiny_config


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path, "optim.lr=0.25")


def test_other_ranks_and_no_uri_keep_nothing(config, tmp_path):
    assert isinstance(open_tracker(config, is_main=False), NullTracker)
    off = tiny_config(tmp_path, "tracking.uri=")
    nothing = open_tracker(off, is_main=True)
    nothing.metrics({"loss": 1.0}, 1)
    nothing.end()
    assert nothing.run_id is None and not list(tmp_path.iterdir())


def test_a_run_goes_on_under_its_id(config, tmp_path):
    tracker = open_tracker(config, is_main=True)
    tracker.metrics({"loss": 2.0}, 1)
    tracker.end("KILLED")
    client = mlflow.MlflowClient(config.tracking.uri)
    assert client.get_run(tracker.run_id).info.status == "KILLED"

    again = open_tracker(config, is_main=True, run_id=tracker.run_id)
    assert client.get_run(again.run_id).info.status == "RUNNING"
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
