"""What the engine or the data would refuse after the queue is refused at once."""

import pytest

from data_prep.errors import ConfigError
from pipeline.config import load_config
from pipeline.run_check import check_run


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
        (["engine={strategy: zero0, expert_parallel: 1}"], 2, "is fp32 without ZeRO"),
        (["engine.strategy=zero0", "train.precision=fp32"], 2, "clips divided experts"),
        (
            [
                *("model.experts.backend=native", "train.precision=fp32"),
                "engine={strategy: zero0, expert_parallel: 1}",
            ],
            2,
            "counts experts wrong",
        ),
        (["train.precision=fp16"], 2, "is 1 in fp16"),
        (["engine.strategy=zero3_offload"], 2, "is 1 under zero3_offload"),
        (["objective=contrastive"], 1, "batch.micro_size"),
        (["objective=language", "data.pack_tokens=64"], 2, "are for objective=flamingo"),
        (["data.held_out=null"], 2, "data.held_out = None"),
        (["train.validate_samples=1"], 2, "train.validate_samples=2 or more"),
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
