"""Any division of a global batch covers the same positions, each once."""

import pytest

from pipeline.batch_plan import BatchPlan, check_batch


@pytest.mark.parametrize(("micro", "world"), [(8, 1), (4, 2), (2, 4), (1, 8), (1, 1)])
def test_splits_cover_the_same_positions(micro, world):
    plan = BatchPlan(8, micro, world)
    positions = [
        p
        for m in range(plan.accumulation_steps)
        for rank in range(world)
        for p in plan.positions(5, rank, m)
    ]
    assert positions == list(range(40, 48))


def test_indivisible_batch_names_the_nearest():
    (problem,) = check_batch(1000, 4, 16)
    assert "960 or 1024" in problem.remedy and "64" in problem.rule
    assert check_batch(1024, 4, 16) == []
