"""`roseate features`: what training reads is what the frozen tower gives, and everything else is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from data_prep.errors import ConfigError
from pipeline.batch_plan import BatchPlan
from pipeline.cli.main import app
from pipeline.config import RunConfig
from pipeline.data.loader import TrainStream
from pipeline.features import job
from pipeline.features.job import plan_features, write_features
from pipeline.objectives import FlamingoObjective, LossScale, run_flamingo
from pipeline.share import find_share
from tests.helpers.dataset import write_dataset, write_scenes
from tests.helpers.tiny import tiny_config, write_towers
from tests.unit.pipeline.data.conftest import interleaved

CPU = torch.device("cpu")
OPEN = ("model.cross_attention.gate_init=1.0", "data.pack_tokens=64")
PLAN = BatchPlan(8, 8, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Towers, pairs and documents."""
    root = tmp_path_factory.mktemp("command")
    write_towers(root)
    write_scenes(root / "data" / "laion", 30, shard_rows=8)
    write_dataset(root / "data" / "cc12m", [5, 6], interleaved)
    return root


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(job, "measure_disk", lambda folder, size: 1e9)


def make_config(root: Path, *overrides: str) -> RunConfig:
    return tiny_config(root, *OPEN, f"data.features={root}/features", *overrides)


@pytest.fixture(scope="module")
def written(root) -> dict:
    return write_features(plan_features(make_config(root), batch_size=7))


@pytest.fixture(scope="module")
def objective(root, written) -> FlamingoObjective:
    return FlamingoObjective(make_config(root))


def stream(root: Path, objective: FlamingoObjective, folder: Path | None) -> TrainStream:
    config = make_config(root)
    return TrainStream(config.data, config.seed, objective.text, objective.image, features=folder)


def test_training_reads_what_the_tower_gives(root, objective):
    pixels, features = stream(root, objective, None), stream(root, objective, objective.features)
    for position in (0, 8, 800):
        one, two = (s.micro_batch(PLAN, position, 0, 0) for s in (pixels, features))
        shown, cached = (b.media.inputs["image"] for b in (one, two))
        tower = objective.model.media_encoders["image"]
        encoded = tower.encode(one.to(CPU, torch.float32).media.inputs["image"].data)
        assert len(shown.data) > 8 and cached.features.dtype == torch.float16
        # Half a unit in the last of 11 bits.
        torch.testing.assert_close(cached.features.float(), encoded, rtol=2**-11, atol=1e-5)


def test_the_loss_is_that_of_pixels_and_the_same_in_every_read(root, objective):
    scale, losses = LossScale(100, 1), []
    for folder in (None, objective.features, objective.features):
        batch = stream(root, objective, folder).micro_batch(PLAN, 16, 0, 0)
        black = run_flamingo(objective.model, batch.zero_images().to(CPU, torch.float32))
        loss, report = objective.loss(objective.model, batch.to(CPU, torch.float32), scale)
        losses.append((loss.item(), report["loss_sum"].item(), black.loss_sum.item()))
    assert losses[1] == losses[2]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][1] != losses[0][2], "the images matter"


def test_it_is_done_once_and_goes_on_with_what_is_missing(root, written):
    assert written["images"] == 30 + sum(n % 3 + 1 for n in range(11))
    assert written["lacking"] == {"laion": 0, "cc12m": 0} and written["written"] == 6
    assert written["bytes"] == written["images"] * 16 * 32 * 2
    assert write_features(plan_features(make_config(root)))["written"] == 0
    path = next(Path(written["folder"]).glob("*/000003.npy"))
    before = path.read_bytes()
    path.unlink()
    again = write_features(plan_features(make_config(root), batch_size=7))
    assert again["written"] == 1 and path.read_bytes() == before


def test_processes_divide_the_shards(root, written, tmp_path, monkeypatch):
    config, shares = make_config(root, f"data.features={tmp_path}"), []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(write_features(plan_features(config, batch_size=7)))
    assert [share["written"] for share in shares] == [3, 2, 1]
    assert [sum(share["lacking"].values()) for share in shares] == [3, 1, 0]
    for path in Path(written["folder"]).rglob("*.npy"):
        other = Path(shares[0]["folder"]) / path.relative_to(written["folder"])
        assert other.read_bytes() == path.read_bytes()


def test_the_share_is_that_of_torchrun_or_of_srun(monkeypatch):
    assert find_share() == (0, 1, 0)
    for name, value in (("PROCID", "5"), ("STEP_NUM_TASKS", "8"), ("LOCALID", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert find_share() == (5, 8, 1)
    for name, value in (("RANK", "2"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert find_share() == (2, 4, 0)


def test_another_tower_or_a_changed_one_has_no_features(root, objective, tmp_path):
    shutil.copytree(root / "vision", tmp_path / "vision")
    tensors = load_file(tmp_path / "vision" / "model.safetensors")
    tensors[min(tensors)] += 1
    save_file(tensors, tmp_path / "vision" / "model.safetensors", metadata={"format": "pt"})
    other = FlamingoObjective(make_config(root, f"model.vision.path={tmp_path}/vision"))
    with pytest.raises(ConfigError, match="data.features = .*\n.*this tower and image format"):
        stream(root, other, other.features)


def refused(*arguments, **settings) -> list:
    with pytest.raises(ConfigError) as caught:
        plan_features(*arguments, **settings)
    return [(p.key, p.rule, p.remedy) for p in caught.value.problems]


def test_what_cannot_be_done_is_refused(root, monkeypatch):
    (told,) = refused(make_config(root, "data.features=null"))
    assert told == (
        *("data.features", "names the folder to write to", "add data.features={root}/features"),
    )
    (told,) = refused(make_config(root, "data.image.flip_ratio=0.5"))
    assert told[0] == "data.image.flip_ratio"
    (told,) = refused(make_config(root, "model.vision.path=/nowhere"))
    assert told[0] == "model.vision.path" and "is an image tower that loads: " in told[1]
    (told,) = refused(make_config(root, "data.sources.laion.path=/nowhere"))
    assert told[0] == "data.sources.laion.path"
    usage = shutil.disk_usage(root)._replace(free=10)
    monkeypatch.setattr(job.shutil, "disk_usage", lambda _: usage)
    (told,) = refused(make_config(root, f"data.features={root}/elsewhere"))
    rule = "has room for 52.2 kB of features; 10 bytes are free"
    assert told == ("data.features", rule, "name a folder on a larger disk, or leave it at null")


def test_features_beyond_float16_are_refused(root, tmp_path):
    shutil.copytree(root / "vision", tmp_path / "vision")
    tensors = load_file(tmp_path / "vision" / "model.safetensors")
    tensors["layernorm.weight"] *= 1e6
    save_file(tensors, tmp_path / "vision" / "model.safetensors", metadata={"format": "pt"})
    config = make_config(
        root, f"model.vision.path={tmp_path}/vision", f"data.features={tmp_path}/features"
    )
    ((key, rule, remedy),) = refused(config)
    assert key == "model.vision.path" and remedy == "leave data.features at null"
    assert rule.startswith("gives features that float16 holds, up to 65504; one is ")


def test_the_command_tells_the_cost_first_and_can_stop_there(root, tmp_path):
    arguments = ["features", "demo", f"root={root}", f"data.features={tmp_path}/f"]
    arguments += ["train.precision=fp32", "--json", str(tmp_path / "summary.json")]
    result = CliRunner().invoke(app, [*arguments, "--cost"])
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert any(line.startswith("features: 1.02 kB an image, ") for line in lines)
    assert any(line.startswith("tower: ") and "on cpu in fp32" in line for line in lines)
    assert sum(json.loads(result.stdout)["lacking"].values()) == 6
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "features: image 51/51, 0 s left" in result.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert sum(summary["lacking"].values()) == 0 and summary["pays_from_epochs"] == 2
    note = json.loads((Path(summary["folder"]) / "tower.json").read_text())
    assert note["tower"] == f"{root}/vision" and note["patches_and_width"] == [16, 32]


def test_black_is_what_the_tower_makes_of_black(root, objective):
    black = np.load(objective.features / "black.npy")
    encoder = objective.model.media_encoders["image"]
    pixels = -torch.ones(1, 1, 3, 64, 64)  # (0 - 0.5) / 0.5
    torch.testing.assert_close(
        torch.from_numpy(black).float(), encoder.encode(pixels)[0, 0], rtol=2**-11, atol=1e-5
    )
