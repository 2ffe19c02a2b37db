"""Only whole checkpoints are found; a broken one is passed over with a warning."""

import hashlib
import json

import pytest

from data_prep.errors import ConfigError
from pipeline.checkpoint import check_frozen, check_resume, find_checkpoint


def write(folder, step):
    path = folder / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / "weights.safetensors").write_bytes(b"w" * 100)
    sums = {"weights.safetensors": hashlib.sha256(b"w" * 100).hexdigest()}
    state = {"step": step, "layout": {"world_size": 2}, "files": sums}
    state["frozen"] = {"model.vision.path": "a" * 64}
    (path / "state.json").write_text(json.dumps(state))
    return path


def test_newest_whole_one_is_taken(tmp_path, caplog):
    old, new = write(tmp_path, 1), write(tmp_path, 2)
    assert find_checkpoint(tmp_path) == new
    (new / "weights.safetensors").write_bytes(b"w" * 99 + b"x")
    assert find_checkpoint(tmp_path) == old
    assert "is broken" in caplog.text
    (old / "state.json").write_text("{")
    assert find_checkpoint(tmp_path) is None


def test_partial_ones_are_not_seen(tmp_path):
    write(tmp_path, 1).rename(tmp_path / ".step_000001.partial")
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "missing") is None


def test_another_layout_is_named(tmp_path):
    path = write(tmp_path, 1)
    check_resume(path, {"world_size": 2})
    with pytest.raises(ConfigError, match="resume: world_size = 4"):
        check_resume(path, {"world_size": 4})


def test_another_tower_is_named(tmp_path):
    path = write(tmp_path, 1)
    check_frozen(path, {"model.vision.path": "a" * 64})
    with pytest.raises(ConfigError, match="model.vision.path = 'weights bbbbbbbbbbbb'") as error:
        check_frozen(path, {"model.vision.path": "b" * 64})
    assert "trained with (aaaaaaaaaaaa)" in str(error.value)
