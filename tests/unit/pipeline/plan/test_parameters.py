import random

import pytest

from pipeline.config import load_config
from pipeline.plan.model import DTYPES, build_planned
from pipeline.plan.parameters import ParameterGroup, list_parameters


@pytest.mark.parametrize("seed", range(5))
def test_what_a_part_touches_is_what_a_slow_search_finds(seed):
    draw = random.Random(seed)
    sizes = tuple(draw.choice((1, 7, 50, 300)) for _ in range(12))
    group, world_size = ParameterGroup("-", sizes, 8), draw.choice((1, 2, 3, 8))
    owners = [index for index, size in enumerate(sizes) for _ in range(size)]
    share = group.share(1, world_size)
    assert share * world_size == group.joined(world_size) >= sum(sizes)
    for rank in range(world_size):
        here = set(owners[rank * share : (rank + 1) * share])
        slow = sum(sizes[index] for index in here)
        assert group.touched(rank, world_size) == (slow or share)


def test_every_parameter_is_in_one_group_and_experts_are_divided():
    config = load_config("flamingo_9b_moe")
    model = build_planned(config, DTYPES["bf16"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    whole = list_parameters(model, config, 1)
    assert (whole.trained_numel, sum(whole.frozen)) == (trained, frozen)
    assert [group.name for group in whole.groups] == ["matrices", "resampler", "delicate"]
    divided = list_parameters(model, config, 64)
    (experts,) = (group for group in divided.groups if group.expert_ranks > 1)
    # Gate, up and down of each of four blocks, one of eight experts on a rank.
    assert experts.sizes == (4096 * 16384,) * 12
    assert experts.ranks(64) == 8
    assert divided.trained_numel + 7 * sum(experts.sizes) == trained
