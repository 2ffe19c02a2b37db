import json

import numpy as np
import pytest

from data_prep.errors import ConfigError
from pipeline.evaluation.config import EvaluationData
from pipeline.evaluation.layouts.read import read_records
from pipeline.evaluation.metrics.bootstrap import Interval
from pipeline.evaluation.results import (
    CheckpointIdentity,
    DataIdentity,
    Figure,
    Results,
    Row,
)
from tests.helpers.field_files import coco_data, write_images, write_json

CHECKPOINT = CheckpointIdentity(path="runs/x", run="x", step=7)


def test_what_is_saved_is_loaded(tmp_path):
    data = coco_data(4)
    write_images(tmp_path, [i["file_name"] for i in data["images"]][1:])
    section = EvaluationData(
        path=str(tmp_path), annotations=write_json(tmp_path / "a.json", data), max_missing=0.5
    )
    identity = DataIdentity.of(section, read_records(section))
    assert identity.counts["missing_images"] == 1 and identity.layout == "coco"
    figure = Figure.of("perplexity", Interval(3.0, 2.5, 3.5), 3, "zero_image", unit="x")
    row = Row(key="k", truth=["a"], said={"": "b"}, scores={"perplexity": np.nan, "cider_d": 1.0})
    results = Results(
        suite="s", checkpoint=CHECKPOINT, data=identity, figures=[figure], rows=[row], seconds=1.5
    )
    results.save(tmp_path / "deep" / "results.json")
    assert Results.load(tmp_path / "deep" / "results.json") == results
    assert results.figures[0].key == "perplexity_zero_image"
    assert results.figures[0].better == "lower" and results.rows[0].scores["perplexity"] is None


def test_json_holds_null_where_there_is_no_number(tmp_path):
    figure = Figure.of("cider_d", Interval(np.nan, np.inf, np.nan), 0)
    Results(suite="s", checkpoint=CHECKPOINT, figures=[figure]).save(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert [found["figures"][0][k] for k in ("value", "low", "high")] == [None] * 3
    assert found["schema_version"] == 1


def test_other_files_are_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"suite": "s"}')
    for name in ("other.json", "nothing.json"):
        with pytest.raises(ConfigError, match="holds the results of an evaluation"):
            Results.load(tmp_path / name)
