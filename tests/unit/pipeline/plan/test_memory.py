import pytest

from pipeline.plan.memory import Trained, compute_passing, compute_standing, move_to_host
from pipeline.plan.parameters import ParameterGroup, Parameters
from pipeline.plan.strategy import Strategy

MATRICES = ParameterGroup("matrices", (5000, 3000), 8)
DELICATE = ParameterGroup("delicate", (200,), 32)
EXPERTS = ParameterGroup("matrices, experts", (2048, 2048, 2048), 8, expert_ranks=2)
PARAMETERS = Parameters([MATRICES, DELICATE], [6000, 40])
EIGHT = 1 + 4 / 256


def trained(optimizer="adamw_8bit", precision="bf16", accumulation=1, parameters=PARAMETERS):
    return Trained(parameters, 4, precision, optimizer, accumulation, min_8bit_numel=4096)


def standing(stage, persistent=100, **settings):
    strategy = Strategy("-", stage, persistent=persistent)
    return list(compute_standing(trained(**settings), strategy).values())


def test_the_arithmetic_of_every_stage():
    # The matrix of 3,000 elements is too small for moments of 8 bits.
    eight, exact = 2 * EIGHT * 5000, 2 * 4 * (3000 + 200)
    whole = [2 * 8200, 2 * 6040, 0, 2 * 8200]
    assert standing(0) == pytest.approx([*whole, 4 * 8200, eight, exact])
    assert standing(1) == pytest.approx([*whole, 8200, eight / 4, exact / 4])
    # The second and third rank's parts of the matrices touch both; theirs of the rest touches all.
    found = standing(2)
    assert found[:3] == whole[:3]
    assert found[3] == 2 * (8000 + 200)
    assert found[4:] == pytest.approx([8200, eight / 4, exact / 4])
    # A part of 1,250 elements ends within a block, which keeps 32 bits: half a block at each end.
    eight, exact = 2 * EIGHT * (1250 - 256), 2 * 4 * (256 + 750 + 50)
    expected = [2 * 2050, 2 * 1510, 2 * 40, 2 * 2050, 8200, eight, exact]
    assert standing(3) == pytest.approx(expected)


def test_fp32_has_masters_too_but_not_without_zero():
    masters = {stage: standing(stage, precision="fp32")[4] for stage in range(4)}
    assert masters == {0: 0, 1: 8200, 2: 8200, 3: 8200}


def test_moments_follow_the_optimizer():
    assert standing(1, optimizer="adamw")[5:] == [0, 8 * 2050]
    both, one = standing(1), standing(1, optimizer="lion_8bit")
    assert one[5:] == pytest.approx([size / 2 for size in both[5:]])


def test_a_second_micro_batch_doubles_the_gradients_of_zero_2_alone():
    for stage, factor in enumerate((1, 1, 2, 1)):
        assert standing(stage, accumulation=2)[3] == factor * standing(stage)[3]


def test_divided_experts_are_divided_over_the_ranks_that_have_the_same():
    parameters = Parameters([EXPERTS])
    found = standing(1, parameters=parameters)
    assert found[0] == 2 * 6144
    assert found[4] == 4 * 6144 / 2
    # What one rank has to itself is not gathered.
    alone = Parameters([ParameterGroup("experts", (64, 64), 8, expert_ranks=4)])
    strategy = Strategy("-", 3, persistent=100)
    assert compute_standing(trained(parameters=alone), strategy)["whole"] == 0
    # But it still arrives in a tensor of its own.
    strategy = Strategy("-", 3, persistent=10)
    assert compute_passing(trained(parameters=alone), strategy)["gathered"] == 2 * 128


def test_what_passes_in_a_step():
    strategy = Strategy("-", 2, reduce_bucket=1000, overlaps=True)
    figures = compute_passing(trained(), strategy)
    assert figures == {"buckets": 2 * (2000 + 5000), "gathered": 0, "update": (2 + 4) * 2000}
    # torch's AdamW wants a tensor more.
    assert compute_passing(trained("adamw", "fp32"), strategy)["update"] == (4 + 4) * 2000
    strategy = Strategy("-", 3, reduce_bucket=1000, persistent=100, live=5500, step_group=1500)
    figures = compute_passing(trained(), strategy)
    # The largest parameter is gathered, whatever the limit; all 14,200 come in one tensor before.
    gathered = 2 * (6000 + 14200)
    assert figures == {"buckets": 2 * 6000, "gathered": gathered, "update": (2 + 4) * 1500}
    strategy = Strategy("-", 1, reduce_bucket=1000)
    figures = compute_passing(trained(), strategy)
    # The gradients of a part's parameters are copied for the update: more than one group in fp32.
    assert figures == {"buckets": 2 * 1000, "gathered": 0, "update": 2 * 8200}
    assert compute_passing(trained(), Strategy("-"))["update"] == 4 * 8200


def test_offloading_moves_bytes_and_loses_none():
    strategy = Strategy("-", 3, persistent=100, optimizer_on_cpu=True, weights_on_cpu=True)
    run = trained()
    before = compute_standing(run, strategy) | compute_passing(run, strategy)
    after = dict(before)
    host = move_to_host(after, run, strategy)
    assert after["master"] == after["moments_8bit"] == after["weights"] == after["frozen"] == 0
    moved = ("master", "moments_8bit", "moments_32bit", "weights", "frozen")
    # And the gradients in fp32 and bf16.
    assert host == sum(before[name] for name in moved) + 6 * 2050
    assert after["whole"] == before["whole"]
