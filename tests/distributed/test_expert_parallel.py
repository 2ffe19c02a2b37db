"""One step with the experts divided over 1, 2 and 4 ranks: the same loss, gradient and clipped update.

The optimizer is plain gradient descent with a step of 1, so that what the weights lose is the clipped gradient.
"""

import pytest
import torch

from pipeline.batch_plan import BatchPlan
from pipeline.data.held_out import HeldOut
from pipeline.engine import start as engine_module
from pipeline.engine.deepspeed_config import zero_stage
from pipeline.engine.optim import parameter_groups
from pipeline.engine.start import start_engine
from pipeline.engine.weights import gather_trainable
from pipeline.objectives import FlamingoObjective, LossScale
from tests.helpers.processes import run_processes
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.distributed

SAMPLES = 8


def descent(_, module, *, split_experts, entries):
    groups = parameter_groups(module, 0.0)
    if split_experts:
        from deepspeed.moe.utils import configure_moe_param_groups

        groups = configure_moe_param_groups(groups)
    return torch.optim.SGD(groups, lr=1.0)


def one_step(info, root, strategy, expert_parallel):
    engine_module.build_optimizer = descent
    config = tiny_config(
        root,
        "model.experts={num_experts: 4, top_k: 2, every: 1, shared_expert: true,"
        " load_balance_weight: 0.1, z_loss_weight: 0.1}",
        "model.cross_attention.gate_init=1.0",
        f"engine={{strategy: {strategy}, expert_parallel: {expert_parallel}}}",
        "optim.clip_norm=0.05",
    )
    plan = BatchPlan(SAMPLES, SAMPLES // info.world_size, info.world_size)
    objective = FlamingoObjective(config)
    held_out = HeldOut(config.data, objective.text, objective.image)
    (batch,) = held_out.batches(SAMPLES, plan.micro_size, info.rank, info.world_size)
    targets = torch.tensor(float(batch.num_target_tokens))
    torch.distributed.all_reduce(targets)
    before = {n: p.detach().clone() for n, p in objective.model.named_parameters()}
    engine = start_engine(config, objective.model, plan, "fp32")
    engine.train()
    batch = batch.to(info.device, torch.float32)
    loss, _ = objective.loss(engine, batch, LossScale(targets.item(), info.world_size))
    engine.backward(loss)
    engine.step()
    mean = loss.detach() / info.world_size
    torch.distributed.all_reduce(mean)
    after = gather_trainable(engine, zero_stage(config), info)
    update = {name: (before[name] - value).tolist() for name, value in after.items()}
    return mean.item(), float(engine.get_global_grad_norm()), update if info.is_main else None


@pytest.fixture(scope="module")
def reference(tiny_root):
    """One process, whole experts, the whole batch."""
    return run_processes(one_step, 1, tiny_root, "zero1", 1)[0]


@pytest.mark.parametrize(
    ("processes", "strategy", "expert_parallel"),
    [(4, "zero2", 1), (4, "zero2", 2), (4, "zero2", 4), (2, "zero1", 2), (2, "zero3", 2)],
)
def test_divided_experts_take_the_same_step(
    tiny_root, reference, processes, strategy, expert_parallel
):
    ranks = run_processes(one_step, processes, tiny_root, strategy, expert_parallel)
    loss, norm, update = ranks[0]
    assert loss == pytest.approx(reference[0], rel=1e-6)
    assert norm == pytest.approx(reference[1], rel=1e-5)
    assert norm > 1, "the clip at 0.05 must act"
    assert update.keys() == reference[2].keys()
    total = 0.0
    for name, expected in reference[2].items():
        ours, expected = torch.tensor(update[name]), torch.tensor(expected)
        # The difference of two fp32 weights near 1 is known to 1e-7.
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=5e-7, msg=name)
        total += float(expected.square().sum())
    assert total**0.5 == pytest.approx(0.05, rel=1e-3)
