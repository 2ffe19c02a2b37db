"""What `roseate export` writes, refuses and leaves behind."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from data_prep.errors import ConfigError
from model.experts import NativeExperts
from pipeline.export.code import remote_code
from pipeline.export.export import check_target, export_model
from tests.helpers.command import exit_code
from tests.unit.pipeline.export.cases import opened


@pytest.fixture
def trained(trained_root):
    return opened(trained_root)


def dtypes(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118


def test_half_precision_halves_the_weights_but_for_routers_and_new_tokens(trained, tmp_path):
    whole = export_model(trained, tmp_path / "fp32")
    half = export_model(trained, tmp_path / "fp16", precision="fp16")
    assert 0.45 < half["bytes"] / whole["bytes"] < 0.6 and half["parameters"] == whole["parameters"]
    for name, dtype in dtypes(tmp_path / "fp16").items():
        fine = ".routed.gate" in name or "new_tokens" in name
        assert dtype == (torch.float32 if fine else torch.float16), name


def test_whoever_may_read_the_card_may_read_the_weights(trained, tmp_path):
    export_model(trained, tmp_path / "out")
    modes = {stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "out").iterdir()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}


def test_the_code_of_the_project_stands_alone():
    for name, text in remote_code().items():
        assert "import deepspeed" not in text and "from deepspeed" not in text, name
        assert not [t for t in ("from model.", "from pipeline", "from data_prep") if t in text], (
            name
        )
        compile(text, name, "exec")


def test_a_folder_that_is_not_empty_stays(trained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="(?s)DIR.*is a folder that is not there yet, or empty"):
        export_model(trained, tmp_path / "out")
    with pytest.raises(
        ConfigError, match="(?s)is an earlier export, to be replaced by --overwrite"
    ):
        export_model(trained, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_place_of_the_folder_stays(trained, tmp_path):
    (tmp_path / "out").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="DIR"):
            export_model(trained, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "mine"


def test_an_earlier_export_is_replaced_whole(trained, tmp_path):
    export_model(trained, tmp_path / "out")
    (tmp_path / "out" / "model-00001-of-00002.safetensors").write_bytes(b"of a larger one")
    export_model(trained, tmp_path / "out", overwrite=True, precision="bf16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert [p.name for p in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_export_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr("pipeline.export.export.write_card", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        export_model(trained, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_full_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ConfigError, match="has room for"):
        export_model(trained, tmp_path / "above" / "out")
    assert not list(tmp_path.iterdir())


def test_parts_that_cannot_be_taken_along_are_named_all_at_once(trained, tmp_path, monkeypatch):
    vision = trained.config.model.vision.model_copy(update={"path": "package.module:factory"})
    model = trained.config.model.model_copy(update={"vision": vision})
    trained.config = trained.config.model_copy(update={"model": model})
    block = trained.objective.model.gated_blocks[1].feed_forward
    block.routed = NativeExperts.__new__(NativeExperts)
    torch.nn.Module.__init__(block.routed)
    with pytest.raises(ConfigError) as raised:
        export_model(trained, tmp_path / "out")
    assert [p.key for p in raised.value.problems] == ["model.experts.backend", "model.vision.path"]
    told = str(raised.value)
    assert "is stacked, for an export" in told and "train with stacked experts" in told
    assert "is a transformers image model or efficientnet_lite0, for an export" in told


def run(monkeypatch, capsys, *arguments):
    code = exit_code(monkeypatch, "export", *arguments)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command(trained_root, tmp_path, monkeypatch, capsys):
    places = trained_root / "flamingo", tmp_path / "out"
    options = ("--precision", "bf16", "--towers", "reference")
    code, out, err = run(monkeypatch, capsys, *places, *options)
    summary = json.loads(out)
    assert code == 0 and summary["dtype"] == "bfloat16"
    assert summary["files"] == len(list((tmp_path / "out").iterdir()))
    assert "named by paths of this machine" in err
    code, _, err = run(monkeypatch, capsys, *places)
    assert code == 2 and "--overwrite" in err


def test_a_wrong_checkpoint_or_value_is_refused(trained_root, tmp_path, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, tmp_path / "nothing", tmp_path / "out")
    assert code == 2 and "CHECKPOINT" in err and "train first" in err
    options = (trained_root / "flamingo", tmp_path / "out")
    for option in ("--towers", "--precision", "--experts"):
        code, _, err = run(monkeypatch, capsys, *options, option, "some")
        assert code == 2 and option in err and "some" in err
    missing = f"model.language.path={tmp_path}/none"
    code, _, err = run(monkeypatch, capsys, *options, missing)
    assert code == 2 and "model.language.path" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [".", "..", "/"])
def test_a_folder_without_a_name_is_refused(place):
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is a folder by its name") as refused:
            check_target(Path(place), overwrite=overwrite)
        assert [problem.key for problem in refused.value.problems] == ["DIR"]
