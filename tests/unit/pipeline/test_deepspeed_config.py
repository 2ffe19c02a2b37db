"""What the engine would refuse after the queue is refused at once; every strategy merges with every preset."""

import json

import pytest

from data_prep.errors import ConfigError
from pipeline import deepspeed_config
from pipeline.batch_plan import BatchPlan
from pipeline.config import load_config, preset_names
from pipeline.deepspeed_config import (
    STRATEGIES,
    build_deepspeed_config,
    check_run,
    is_expert_parallel,
    load_strategy,
)


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("strategy", [p.stem for p in STRATEGIES.glob("*.json")])
def test_every_strategy_merges_with_every_preset(preset, strategy):
    config = load_config(preset, [f"engine.strategy={strategy}"])
    plan = BatchPlan(config.batch.global_size, config.batch.micro_size, 2)
    merged = build_deepspeed_config(config, plan, "fp32")
    assert merged["train_batch_size"] == plan.micro_size * plan.accumulation_steps * 2
    assert merged["gradient_clipping"] == config.optim.clip_norm
    assert '"auto"' not in json.dumps(merged)
    assert ("expert_parallel" in merged) == is_expert_parallel(config)


@pytest.mark.parametrize(
    ("overrides", "world_size", "key"),
    [
        (["batch.global_size=100"], 2, "batch.global_size"),
        (["engine.strategy=zero9"], 2, "engine.strategy"),
        (
            ["model.experts.backend=native", "engine.strategy=zero3", "engine.expert_parallel=1"],
            2,
            "ZeRO-3",
        ),
        (["model.experts.backend=native"], 2, "engine.expert_parallel"),
        (["batch.global_size=96"], 3, "divides the number of processes"),
        (["engine.expert_parallel=8", "batch.global_size=256"], 8, "num_experts=4"),
        (["model.experts.capacity_factor=1.5"], 2, "lose no token"),
        (["objective=contrastive"], 1, "batch.micro_size"),
        (["objective=language", "data.pack_tokens=64"], 2, "are for objective=flamingo"),
    ],
)
def test_refused_before_anything_starts(overrides, world_size, key):
    with pytest.raises(ConfigError, match=key):
        check_run(load_config("demo", overrides), world_size)


def test_all_cross_section_problems_at_once():
    config = load_config("demo", ["batch.global_size=100", "engine.strategy=zero9"])
    with pytest.raises(ConfigError) as caught:
        check_run(config, 3)
    assert len(caught.value.problems) == 3


def test_strategy_file_may_not_hold_what_the_run_owns(tmp_path, monkeypatch):
    (tmp_path / "bad.json").write_text('{"train_batch_size": 4, "gradient_clipp1ng": 1}')
    monkeypatch.setattr(deepspeed_config, "STRATEGIES", tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_strategy("bad")
    assert [p.value for p in caught.value.problems] == ["gradient_clipp1ng", "train_batch_size"]


@pytest.mark.parametrize(
    ("override", "key", "remedy"),
    [
        ("data.image.crop_area=0.5", "data.image.crop_area", "set data.image.crop_area=1"),
        ("data.image.flip_ratio=0.5", "data.image.flip_ratio", "set data.image.flip_ratio=0"),
        ("data.image.drop_ratio=0.1", "data.image.drop_ratio", "set data.image.drop_ratio=0"),
        ("data.features=s3://bucket/features", "data.features", "give a path"),
        ("objective=language", "data.features", "set data.features=null"),
    ],
)
def test_features_go_with_images_as_they_are(override, key, remedy):
    ours = ["data.features={root}/features", override]
    with pytest.raises(ConfigError) as caught:
        check_run(load_config("demo", ours), 2)
    (problem,) = caught.value.problems
    assert problem.key == key and problem.remedy.startswith(remedy)


def test_features_of_images_as_they_are_can_be_used():
    check_run(load_config("demo", ["data.features={root}/features", "data.image.fit=pad"]), 2)
    check_run(load_config("demo", ["data.image.flip_ratio=0.5"]), 2)
