import os
import shutil

import pytest
import torch

from data_prep.errors import ConfigError
from pipeline.trained import find_trained, open_trained


@pytest.mark.parametrize("place", ["flamingo", "flamingo/", "flamingo/checkpoints", "newest"])
def test_a_checkpoint_is_found_by_its_run_by_its_folder_and_by_itself(trained_root, place):
    (newest,) = (trained_root / "flamingo" / "checkpoints").glob("step_*6")
    name = str(newest) if place == "newest" else f"{trained_root}/{place}"
    config, found = find_trained(name, ["evaluation.max_samples=3"])
    assert found.step == 6
    assert config.evaluation.max_samples == 3 and config.root == str(trained_root)


def test_a_preset_means_its_newest_checkpoint(trained_root):
    config, found = find_trained("demo", [f"root={trained_root}"])
    assert found.step == 6 and config.optim.warmup_steps == 40


def test_the_model_has_the_checkpoints_weights(trained_root):
    trained = open_trained(str(trained_root / "flamingo"))
    own = dict(trained.objective.model.named_parameters())
    weights = trained.checkpoint.weights()
    assert weights and all(torch.equal(own[n].cpu(), w) for n, w in weights.items())
    assert trained.step == 6 and len(trained.run_id) == 32
    assert not trained.objective.model.training


def test_a_place_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(ConfigError, match="(?s)CHECKPOINT.*folder of a checkpoint.*train first"):
        find_trained(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="has a checkpoint in"):
        find_trained("demo", [f"root={tmp_path}"])


def test_a_named_checkpoint_that_is_broken_is_not_replaced_by_another(trained_root, tmp_path):
    shutil.copytree(trained_root / "flamingo", tmp_path / "flamingo")
    (newest,) = (tmp_path / "flamingo" / "checkpoints").glob("step_*6")
    largest = max((p for p in newest.iterdir()), key=lambda p: p.stat().st_size)
    os.truncate(largest, 10)
    with pytest.raises(ConfigError, match="is a whole checkpoint: .* has 10 bytes"):
        find_trained(str(newest))
    with pytest.raises(ConfigError, match="is a whole checkpoint"):
        find_trained(str(newest.with_name("step_000777")))


def test_missing_towers_are_named_with_their_keys(trained_root, tmp_path):
    moved = [f"model.vision.path={tmp_path}/v", f"model.language.path={tmp_path}/runs"]
    with pytest.raises(ConfigError) as caught:
        open_trained(str(trained_root / "flamingo"), moved)
    assert {p.key for p in caught.value.problems} == {"model.vision.path", "model.language.path"}


def test_a_tower_is_no_flamingo(trained_root):
    with pytest.raises(ConfigError, match="objective flamingo"):
        open_trained(str(trained_root / "flamingo"), ["objective=language"])
