"""Every preset loads; every mistake is named, all at once, with the exit code."""

import subprocess
import sys

import pytest
import yaml
from pydantic import BaseModel

from data_prep.errors import ConfigError
from pipeline.config import (
    PRESETS,
    RunConfig,
    flatten,
    load_config,
    load_ingest_config,
    preset_names,
)


@pytest.mark.parametrize("name", preset_names())
def test_preset_loads_and_round_trips(name, tmp_path):
    config = load_config(name)
    file = tmp_path / "copy.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    assert load_config(str(file)) == config


def test_presets_say_what_they_are():
    for path in PRESETS.glob("*.yaml"):
        assert path.read_text().startswith("# "), path


def test_every_field_has_a_description():
    def walk(section: type[BaseModel]):
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                walk(inner)
            else:
                assert field.description, f"{section.__name__}.{name}"

    walk(RunConfig)


def test_override_reaches_its_key_and_root_is_substituted():
    config = load_config("demo", ["optim.lr=1e-5", "root=/tmp/else"])
    assert config.optim.lr == 1e-5
    assert config.ingest.output == "/tmp/else/data"
    assert flatten(config)["optim.lr"] == 1e-5


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config("demo", ["optim.lrr=1", "train.steps=ten", "nonsense"])
    text = str(caught.value)
    assert "optim.lrr" in text and "did you mean lr?" in text
    assert "train.steps" in text and "'ten'" in text
    assert "section.key=value" in text
    assert text.startswith("3 problems")


def test_override_below_a_value_is_refused():
    with pytest.raises(ConfigError, match="no such place"):
        load_config("demo", ["root.deeper=1"])


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean demo"):
        load_config("dmo")


@pytest.mark.parametrize(("text", "rule"), [("a: [", "valid YAML"), ("- 1", "holds sections")])
def test_broken_files_are_refused(tmp_path, text, rule):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rule):
        load_config(str(file))


def roseate(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], capture_output=True, text=True
    )


def test_config_error_is_exit_code_2_and_fits_a_screen():
    done = roseate("config", "check", "demo", "--world-size", "3", "batch.global_size=100")
    assert done.returncode == 2
    assert "batch.global_size = 100" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 25


def test_config_check_needs_neither_torch_nor_ray():
    code = (
        "import sys; from pipeline.config import load_config;"
        "from pipeline.run_check import check_run; check_run(load_config('demo'), 2);"
        "sys.exit(bool({'torch', 'ray', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_show_and_diff():
    assert "lr: 0.5" in roseate("config", "show", "demo", "optim.lr=0.5").stdout
    assert "objective: 'flamingo' -> 'contrastive'" in (
        roseate("config", "diff", "demo", "demo_vision").stdout
    )


@pytest.mark.parametrize("command", ["ingest", "train", "evaluate", "generate", "demo"])
def test_help_shows_an_example(command):
    assert f"Example: roseate {command}" in roseate(command, "--help").stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.pack_tokens=16", "pack_tokens=16 is at least max_text_tokens=32"),
        ("data.image={fit: pad, crop_area: 0.5}", "crop_area below 1 goes with fit=crop"),
        ("data.sources={a: {path: x, weight: 0}}", "greater than 0"),
    ],
)
def test_data_that_does_not_fit_together_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("demo", [override])


def test_a_path_below_the_root_needs_no_quotes_in_an_override():
    config = load_config(
        "demo", ["root=/r", "data.features={root}/features", "tracking.uri={root}"]
    )
    assert (config.data.features, config.tracking.uri) == ("/r/features", "/r")


INGEST = """
ingest:
  output: "{root}/data"
  sources: {laion: {table: laion.parquet}}
"""


def test_a_file_may_hold_an_ingest_alone(tmp_path):
    path = tmp_path / "laion.yaml"
    path.write_text(INGEST)
    config = load_ingest_config(str(path), ["root=there", "ingest.shard_rows=7"])
    assert config.ingest.output == "there/data" and config.ingest.shard_rows == 7
    assert config.tracking.uri == "sqlite:///there/mlflow.db"
    with pytest.raises(ConfigError) as refused:
        load_config(str(path))
    assert {p.key for p in refused.value.problems} == {"root", "name", "data", "model"}


def test_a_file_that_begins_a_training_is_checked_whole(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(INGEST + "model: {}\n")
    with pytest.raises(ConfigError, match="data = None"):
        load_ingest_config(str(path))
    assert isinstance(load_ingest_config("demo"), RunConfig)
