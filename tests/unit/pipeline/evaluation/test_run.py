"""An evaluation as a whole: what it refuses first, and what it writes."""

import mlflow
import pytest

from data_prep.errors import ConfigError
from pipeline.evaluation.results import Results
from pipeline.evaluation.run import evaluate
from pipeline.trained import find_trained
from tests.helpers.waiting import PATIENCE, PATIENT
from tests.unit.pipeline.evaluation.suites.conftest import write_coco


def test_suites_are_refused_before_the_model_is_loaded(trained_root, tmp_path):
    config, checkpoint = find_trained(
        str(trained_root / "flamingo"), [f"model.vision.path={tmp_path}/gone"]
    )
    with pytest.raises(ConfigError) as caught:
        evaluate(config, checkpoint, ["vqa"])
    assert [p.key for p in caught.value.problems] == ["evaluation.data"]


def test_texts_without_positions_are_noted(trained_root, tmp_path):
    data = write_coco(tmp_path, ["red " * 2100, "a blue star"])
    overrides = [data, "tracking.uri=", "evaluation.resamples=20"]
    config, checkpoint = find_trained(str(trained_root / "flamingo"), overrides)
    config = config.model_copy(update={"root": str(tmp_path)})
    summary = evaluate(config, checkpoint, ["perplexity"])
    assert summary["samples"] == 2
    written = tmp_path / config.name / "evaluation" / "step_000006" / "perplexity" / "results.json"
    results = Results.load(written)
    assert results.notes == [
        "3 times a text is weighed without its last tokens: the language model has 2048 positions"
    ]
    assert results.settings["max_samples"] == 16


def test_an_evaluation_that_fails_leaves_a_failed_run(trained_root, tmp_path, monkeypatch):
    data, uri = write_coco(tmp_path, ["red", "blue"]), f"sqlite:///{tmp_path}/mlflow.db"
    overrides = [data, f"tracking.uri={uri}", PATIENT]
    config, checkpoint = find_trained(str(trained_root / "flamingo"), overrides)
    config = config.model_copy(update={"root": str(tmp_path)})

    def fail(*_, **__):
        raise OSError("the disk is gone")

    monkeypatch.setattr("pipeline.evaluation.run.run_suites", fail)
    monkeypatch.setattr("pipeline.tracking.spooled.STOPPED_SECONDS", PATIENCE)
    with pytest.raises(OSError, match="the disk is gone"):
        evaluate(config, checkpoint, ["perplexity"])
    client = mlflow.MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.`mlflow.runName` = 'evaluate'")
    assert run.info.status == "FAILED"
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest and [tag.value for tag in used.tags] == ["evaluation"]
