import pytest

from model.plan import ModelPlan, PartPlan
from pipeline.plan.gpus import find_gpu
from pipeline.plan.memory import Trained
from pipeline.plan.parameters import ParameterGroup, Parameters
from pipeline.plan.strategy import Strategy
from pipeline.plan.throughput import compute_flops, compute_speed, wire_bytes

PARAMETERS = Parameters([ParameterGroup("matrices", (1000,), 8)], [9000])


def plan():
    parts = [
        PartPlan("image tower", forward_flops=50),
        PartPlan("cross-attention", forward_flops=10, backward_flops=20),
        PartPlan("language model", forward_flops=100, backward_flops=90),
    ]
    media = [type("Media", (), {"kind": "image"})]
    return ModelPlan(parts, 8, 1, media, [], {}, layer_flops=[(30, 0), (60, 90)])


def test_recomputation_is_the_forward_of_layers_behind_the_first_block_and_of_blocks():
    settings = {"first_layer": 1, "has_features": False}
    plain = compute_flops(plan(), checkpointing=False, **settings)
    again = compute_flops(plan(), checkpointing=True, **settings)
    assert (plain.forward, plain.backward, plain.recomputed) == (8 * 160, 8 * 110, 0)
    assert again.recomputed == 8 * (60 + 10)
    assert again.model == plain.model
    # The hardware is used as well; the model has less of it.
    assert plain.default_mfu == 0.35
    assert again.default_mfu == pytest.approx(0.35 * 270 / 340)


def test_features_in_place_of_images_save_the_tower():
    settings = {"first_layer": 0, "checkpointing": False}
    images = compute_flops(plan(), has_features=False, **settings)
    features = compute_flops(plan(), has_features=True, **settings)
    assert images.forward - features.forward == 8 * 50


@pytest.mark.parametrize(
    ("stage", "elements"), [(0, 2000), (1, 2000), (2, 4000), (3, 3 * (2 * 10000 + 1000))]
)
def test_bytes_on_the_wires(stage, elements):
    trained = Trained(PARAMETERS, 4, "bf16", "adamw", accumulation_steps=3)
    assert wire_bytes(trained, Strategy("-", stage)) == 2 * elements * 3 / 4
    alone = Trained(PARAMETERS, 1, "bf16", "adamw")
    assert wire_bytes(alone, Strategy("-", stage)) == 0


def test_a_step_takes_as_long_as_the_slower_of_the_two():
    trained, gpu = Trained(PARAMETERS, 16, "bf16", "adamw"), find_gpu("h100-80gb")
    common = {"step_flops": 989e12, "mfu": 0.5}
    near = compute_speed(trained, Strategy("-", 1), gpu, nodes=1, **common)
    far = compute_speed(trained, Strategy("-", 1), gpu, nodes=2, **common)
    assert near.compute_seconds == pytest.approx(2)
    assert near.wire_seconds == pytest.approx(4000 * 15 / 16 / 450e9)
    assert far.wire_seconds == pytest.approx(4000 * 15 / 16 / 400e9)
    assert (near.step_seconds, near.bound_by) == (near.compute_seconds, "computation")
    none = compute_speed(trained, Strategy("-", 1), gpu, nodes=1, step_flops=0, mfu=0.5)
    assert none.bound_by == "wires"
