"""The parts of the gradient and the routers' loads are those of the whole batch, however it is divided."""

import pytest
import torch

from pipeline.batch_plan import BatchPlan
from pipeline.curves.curves import Curves
from pipeline.curves.gradients import part_of
from pipeline.curves.throughput import Throughput
from pipeline.data.held_out import HeldOut
from pipeline.engine import start as engine_module
from pipeline.engine.weights import gather_trainable
from pipeline.objectives import FlamingoObjective, LossScale
from tests.distributed.test_expert_parallel import SAMPLES, descent
from tests.helpers.processes import run_processes
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.distributed
LAYOUTS = [(stage, parallel) for stage in (1, 2, 3) for parallel in (1, 2)]


def one_step(info, root, layouts):
    """For each layout: figures of a step, and the norms of what each part of the weights lost."""
    engine_module.build_optimizer = descent
    found = []
    for stage, parallel in layouts:
        config = tiny_config(
            root,
            "model.experts={num_experts: 4, top_k: 2, every: 1}",
            "model.cross_attention.gate_init=1.0",
            f"engine={{strategy: zero{stage}, expert_parallel: {parallel}}}",
            "optim.clip_norm=0.05",
        )
        plan = BatchPlan(SAMPLES, SAMPLES // info.world_size // 2, info.world_size)
        torch.manual_seed(config.seed)
        objective = FlamingoObjective(config)
        held_out = HeldOut(config.data, objective.text, objective.image)
        batches = held_out.batches(SAMPLES, plan.micro_size, info.rank, info.world_size)
        targets = torch.tensor(float(sum(b.num_target_tokens for b in batches)))
        torch.distributed.all_reduce(targets)
        before = {n: p.detach().clone() for n, p in objective.model.named_parameters()}
        engine = engine_module.start_engine(config, objective.model, plan, "fp32")
        engine.train()
        curves = Curves(engine, stage, info, Throughput())
        curves.watch(True)
        scale = LossScale(targets.item(), info.world_size * plan.accumulation_steps)
        for batch in batches:
            loss, _ = objective.loss(engine, batch.to(info.device, torch.float32), scale)
            engine.backward(loss)
            engine.step()
        figures = curves.point()
        lost: dict[str, float] = {}
        for name, value in gather_trainable(engine, stage, info).items():
            square = float((before[name] - value).double().square().sum())
            lost[part_of(name)] = lost.get(part_of(name), 0.0) + square
        found.append((figures, {part: square**0.5 for part, square in lost.items()}))
        curves.watch(False)
    return found


@pytest.fixture(scope="module")
def steps(tiny_root):
    alone = run_processes(one_step, 1, tiny_root, [(2, 1)])[0]
    return alone[0], run_processes(one_step, 2, tiny_root, LAYOUTS)


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_the_norms_are_those_of_the_update_by_part(steps, number):
    """With plain descent a part loses its clipped gradient: the ratios of the norms stay."""
    for rank in steps[1]:
        figures, lost = rank[number]
        whole = sum(value**2 for value in lost.values()) ** 0.5
        for part, value in lost.items():
            share = figures[f"grad_norm/{part}"] / figures["grad_norm"]
            assert share == pytest.approx(value / whole, rel=2e-3), (LAYOUTS[number], part)
    assert len(lost) >= 5


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_routers_and_gates_are_those_of_one_process(steps, number):
    (alone, _), ranks = steps
    names = [n for n in alone if n.startswith(("router/", "gates/", "grad_norm"))]
    assert len(names) > 10
    for rank in ranks:
        for name in names:
            # The losses of routers are of what a micro-step routes: the split shows in the norms.
            rel = 1e-4 if name.startswith(("router", "gates")) else 0.2
            assert rank[number][0][name] == pytest.approx(alone[name], rel=rel), name
