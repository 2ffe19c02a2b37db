"""Evaluation on two ranks: as a command, and within training with experts and weights divided."""

import json

import mlflow
import pytest

from pipeline.trained import find_trained
from tests.distributed.test_train import train
from tests.helpers.command import roseate

pytestmark = pytest.mark.distributed
SUITES = (
    "evaluation={suites: [captioning, perplexity], every_steps: 3, max_samples: 10, batch_size: 4, "
    "resamples: 20, max_new_tokens: 6, attributes: scenes}"
)


@pytest.mark.parametrize(
    "engine",
    [
        "engine={strategy: zero2, expert_parallel: 2}",
        "engine={strategy: zero3, expert_parallel: 1}",
    ],
)
def test_all_ranks_evaluate_in_training(tiny_root, engine):
    """Its figures are those of the finished checkpoint, evaluated whole by one process."""
    name = f"evaluated_{engine.count('3')}"
    summary = train(tiny_root, name, engine, SUITES, "train.precision=fp32")
    client = mlflow.MlflowClient(f"sqlite:///{tiny_root}/mlflow.db")
    run = client.get_run(summary["mlflow_run_id"])
    points = client.get_metric_history(run.info.run_id, "evaluation/perplexity/perplexity")
    assert [p.step for p in points] == [3, 6]
    folder = tiny_root / name / "evaluation" / "step_000006"
    assert (folder / "page.html").is_file()
    trained = json.loads((folder / "perplexity" / "results.json").read_text())
    alone = roseate("evaluate", tiny_root / name, "--suite", "captioning,perplexity")
    for figure in trained["figures"]:
        if figure["condition"] in ("", "zero_image"):
            key = figure["name"] + ("_zero_image" if figure["condition"] else "")
            assert alone[key] == pytest.approx(figure["value"], rel=1e-4), key
    both = roseate("evaluate", tiny_root / name, processes=2)
    same = {k for k, v in alone.items() if isinstance(v, float)}
    assert same and all(both[k] == pytest.approx(alone[k], rel=1e-9) for k in same)
    below = client.get_run(both["mlflow_run_id"])
    assert below.data.tags["mlflow.parentRunId"] == summary["mlflow_run_id"]
    assert below.info.run_name == "evaluate"
    (used,) = below.inputs.dataset_inputs
    results = json.loads((folder / "captioning" / "results.json").read_text())
    assert (used.dataset.name, used.dataset.digest) == ("held_out", results["data"]["fingerprint"])
    assert [tag.value for tag in used.tags] == ["evaluation"]
    assert find_trained(str(tiny_root / name))[1].step == 6
