"""`roseate data show`: the batch that training gets, as a table and as a page."""

import json
import re

import pytest
from typer.testing import CliRunner

from data_prep.errors import ConfigError
from pipeline.batch_plan import BatchPlan
from pipeline.cli.main import app
from pipeline.commands.show_data import format_table, show_data, write_batch_page
from pipeline.data.loader import TrainStream
from pipeline.objectives import FlamingoObjective
from tests.helpers.dataset import write_scenes
from tests.helpers.tiny import tiny_config, write_towers


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("show")
    write_towers(root)
    write_scenes(root / "data" / "laion", 20)
    write_scenes(root / "data" / "cc12m", 30)
    return root


@pytest.fixture(scope="module")
def config(root):
    return tiny_config(root, "data.pack_tokens=64")


def test_it_shows_the_batch_that_training_gets(config):
    objective = FlamingoObjective(config)
    stream = TrainStream(config.data, config.seed, objective.text, objective.image)
    plan = BatchPlan(8, 2, 2)
    trained = [stream.micro_batch(plan, 96, rank, m) for rank in range(2) for m in range(2)]
    shown = show_data(config, position=96)
    by_position = {p: k for b in trained for p, k in zip(b.positions, b.keys, strict=True)}
    assert {row["position"]: row["key"] for row in shown["samples"]} == by_position
    assert shown["sources"] == {"laion": 4, "cc12m": 4}
    assert sum(row["targets"] for row in shown["samples"]) == sum(
        b.num_target_tokens for b in trained
    )


def test_the_table_tells_every_sample_and_the_padding(config):
    shown = show_data(config, position=8, num_samples=3)
    told = format_table(shown)
    for row in shown["samples"]:
        assert row["key"] in told and str(row["position"]) in told
    assert re.search(r"3 samples \(.*\) in \d rows of \d+ tokens, \d+\.\d% padding", told)


def test_the_page_shows_tokens_targets_and_every_image(config, tmp_path):
    shown = show_data(config, position=0)
    write_batch_page(shown, "batch <1>", tmp_path / "deep" / "page.html")
    page = (tmp_path / "deep" / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 8 and "batch &lt;1&gt;" in page
    assert page.count("class='token target'") == sum(r["targets"] for r in shown["samples"])
    assert page.count("<span class=document>") == 8


def test_towers_of_their_own_text_are_shown_too(root):
    vision = tiny_config(root, "objective=contrastive")
    shown = show_data(vision, position=0, num_samples=2)
    assert [row["images"] for row in shown["samples"]] == [1, 1]


def test_a_negative_position_is_refused(config):
    with pytest.raises(ConfigError) as caught:
        show_data(config, position=-1, num_samples=0)
    assert [p.key for p in caught.value.problems] == ["--position", "--samples"]


def test_a_missing_tower_is_refused_by_name(root):
    gone = tiny_config(root, "model.language.path=/nowhere/at/all")
    with pytest.raises(ConfigError, match="/nowhere/at/all"):
        show_data(gone, position=0)


def test_the_command_prints_and_writes(root, tmp_path):
    arguments = ["data", "show", "demo", f"root={root}", "batch.global_size=4", "--step", "3"]
    arguments += ["--html", str(tmp_path / "b.html"), "--json", str(tmp_path / "b.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "4 samples" in result.output and (tmp_path / "b.html").is_file()
    summary = json.loads((tmp_path / "b.json").read_text())
    assert summary["position"] == 12 and len(summary["samples"]) == 4


def test_position_and_step_at_once_are_refused(root):
    arguments = ["data", "show", "demo", f"root={root}", "--step", "3", "--position", "1"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "instead of --step, not beside it" in str(result.exception)
