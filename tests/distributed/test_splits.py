"""One step of one global batch is the same however it is split: loss, clipped update, gradient norm.

Captions have different lengths, so that ranks and micro-steps have different numbers of target tokens.
The losses of the routers are left out: they are of what one micro-step routes, over all ranks, and would
be others for other micro-steps.
"""

import pytest
import torch

from pipeline.batch_plan import BatchPlan
from pipeline.data.held_out import HeldOut
from pipeline.engine import start as engine_module
from pipeline.engine.weights import gather_trainable
from pipeline.objectives import FlamingoObjective, LossScale
from tests.distributed.test_expert_parallel import SAMPLES, descent
from tests.helpers.processes import run_processes
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.distributed
# Ranks to sizes of a micro-batch: 1 x 8 x 1, 1 x 1 x 8, ... of 8 samples.
SPLITS = {1: (8, 4, 2, 1), 2: (4, 2, 1), 4: (2, 1)}


def one_step(info, root, micro_sizes):
    """For each size of the micro-batch: loss, norm, what each weight lost, target tokens of each rank."""
    engine_module.build_optimizer = descent
    config = tiny_config(
        root,
        "model.experts={num_experts: 4, top_k: 2, every: 1, load_balance_weight: 0, z_loss_weight: 0}",
        "model.cross_attention.gate_init=1.0",
        "engine={strategy: zero2, expert_parallel: 1}",
        "optim.clip_norm=0.05",
    )
    found = []
    for micro_size in micro_sizes:
        plan = BatchPlan(SAMPLES, micro_size, info.world_size)
        objective = FlamingoObjective(config)
        held_out = HeldOut(config.data, objective.text, objective.image)
        batches = held_out.batches(SAMPLES, micro_size, info.rank, info.world_size)
        mine = torch.tensor(float(sum(b.num_target_tokens for b in batches)))
        targets = mine.clone()
        torch.distributed.all_reduce(targets)
        before = {n: p.detach().clone() for n, p in objective.model.named_parameters()}
        engine = engine_module.start_engine(config, objective.model, plan, "fp32")
        engine.train()
        scale = LossScale(targets.item(), info.world_size * plan.accumulation_steps)
        total = torch.zeros(())
        for batch in batches:
            loss, report = objective.loss(engine, batch.to(info.device, torch.float32), scale)
            engine.backward(loss)
            engine.step()
            total += report["loss_sum"]
        torch.distributed.all_reduce(total)
        after = gather_trainable(engine, 2, info)
        update = {name: (before[name] - value).tolist() for name, value in after.items()}
        norm = float(engine.get_global_grad_norm())
        found.append((total.item() / targets.item(), norm, update, mine.item()))
    return found


def test_every_split_takes_the_same_step(tiny_root):
    results = {n: run_processes(one_step, n, tiny_root, sizes) for n, sizes in SPLITS.items()}
    loss, norm, update, _ = results[1][0][0]
    assert norm > 0.05, "the step is clipped"
    for ranks, sizes in SPLITS.items():
        tokens = {rank[0][3] for rank in results[ranks]}
        assert ranks == 1 or len(tokens) > 1, "ranks have different numbers of target tokens"
        for number, size in enumerate(sizes):
            where = f"{ranks} ranks, micro-batches of {size}"
            other_loss, other_norm, other, _ = results[ranks][0][number]
            assert other_loss == pytest.approx(loss, rel=1e-6), where
            assert other_norm == pytest.approx(norm, rel=1e-5), where
            for name, value in update.items():
                # A weight minus itself after the step is rounded like the weight.
                mine, other_one = torch.tensor(value), torch.tensor(other[name])
                torch.testing.assert_close(
                    other_one, mine, rtol=1e-3, atol=1e-5, msg=lambda m, w=where: f"{w}: {m}"
                )
            whole, others = (
                torch.cat([torch.tensor(u[name]).flatten() for name in update])
                for u in (update, other)
            )
            assert (others - whole).norm() < 5e-4 * whole.norm(), where
