"""Any division of a global batch covers the same positions, each once."""

import pytest

from pipeline.batch_plan import BatchPlan, check_batch


@pytest.mark.parametrize(("micro", "world"), [(8, 1), (4, 2), (2, 4), (1, 8), (1, 1), (2, 2)])
def test_parts_cover_the_batch_and_a_rank_keeps_together(micro, world):
    plan, batch = BatchPlan(8, micro, world), list(range(8))
    parts = [
        [batch[plan.part(rank, m)] for m in range(plan.accumulation_steps)] for rank in range(world)
    ]
    assert [n for rank in parts for part in rank for n in part] == batch
    for rank in range(world):
        assert batch[plan.part(rank)] == [n for part in parts[rank] for n in part]


def test_indivisible_batch_names_the_nearest():
    (problem,) = check_batch(1000, 4, 16)
    assert "960 or 1024" in problem.remedy and "64" in problem.rule
    assert check_batch(1024, 4, 16) == []
