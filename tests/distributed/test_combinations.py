"""What `config check` lets through works: each combination takes the steps of the plain one.

By default a sample that has every value of every setting; ROSEATE_COMBINATIONS=all tries all of them, and
with ROSEATE_TABLE=docs/engine_combinations.md writes the table of the documentation.
"""

import itertools
import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.batch_plan import BatchPlan
from pipeline.checkpoint.resume import engine_state
from pipeline.data.held_out import HeldOut
from pipeline.engine.deepspeed_config import zero_stage
from pipeline.engine.fragments import view_engine
from pipeline.engine.start import DTYPES, divided_loading, start_engine, state_bytes
from pipeline.engine.support import check_engine
from pipeline.healing.guard import watch_gradients
from pipeline.objectives import FlamingoObjective, LossScale
from tests.helpers.processes import run_processes
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.distributed

STRATEGIES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
EXPERTS = {
    "dense": ("{num_experts: 1, top_k: 1}", 1),
    "experts": ("{num_experts: 4, top_k: 2, every: 1}", 1),
    "divided": ("{num_experts: 4, top_k: 2, every: 1}", 2),
    "native": ("{num_experts: 4, top_k: 2, every: 1, backend: native}", 1),
}
OPTIMIZERS = ("adamw", "adamw_8bit", "lion_8bit")
PRECISIONS = ("fp32", "bf16", "fp16")
# Against fp32 under ZeRO-1; the last steps of three.
CLOSE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 1e-2}
SAMPLES, STEPS = 8, 3
HEADING = """\
# Combinations

Written by `ROSEATE_COMBINATIONS=all ROSEATE_TABLE=docs/engine_combinations.md pytest
tests/distributed/test_combinations.py`: two processes, three steps each; losses and gradient norms as
those of the plain way. Refused: the settings that `roseate config check` names.

"""


@dataclass(frozen=True)
class Combination:
    strategy: str
    experts: str
    optimizer: str
    precision: str
    accumulation: int
    checkpointing: bool

    def config(self, root):
        experts, parallel = EXPERTS[self.experts]
        rate = 1e-4 if self.optimizer == "lion_8bit" else 1e-3
        return tiny_config(
            root,
            f"model.experts={experts}",
            "model.resampler={depth: 1, num_latents: 4, num_heads: 2, head_dim: 8}",
            "model.cross_attention={every: 1, num_heads: 2, head_dim: 8, gate_init: 1.0}",
            f"optim={{name: {self.optimizer}, min_8bit_numel: 512, lr: {rate}, warmup_steps: 0}}",
            f"engine={{strategy: {self.strategy}, expert_parallel: {parallel}}}",
            f"train.precision={self.precision}",
            f"train.activation_checkpointing={str(self.checkpointing).lower()}",
        )


def all_combinations():
    """Accumulation and activation checkpointing go round: each meets each value of the others."""
    names = itertools.product(STRATEGIES, EXPERTS, OPTIMIZERS, PRECISIONS)
    return [
        Combination(*name, accumulation=1 + number % 2, checkpointing=number % 3 == 0)
        for number, name in enumerate(names)
    ]


def supported(root, world_size):
    """In the order of a draw, so that the first of them have all settings."""
    found = [c for c in all_combinations() if not check_engine(c.config(root), world_size)]
    return random.Random(5).sample(found, len(found))


def take_steps(info, config, accumulation):
    """Losses of three steps; the last gradient norm; bytes of moments; widths as they were asked for."""
    precision = config.train.precision
    micro = SAMPLES // info.world_size // accumulation
    plan = BatchPlan(SAMPLES, micro, info.world_size)
    with divided_loading(config, plan, precision):
        objective = FlamingoObjective(config, DTYPES[precision])
    held_out = HeldOut(config.data, objective.text, objective.image)
    batches = held_out.batches(SAMPLES, micro, info.rank, info.world_size)
    assert len(batches) == accumulation
    targets = torch.tensor(float(sum(b.num_target_tokens for b in batches)))
    torch.distributed.all_reduce(targets)
    scale = LossScale(targets.item(), info.world_size * accumulation)
    engine = start_engine(config, objective.model, plan, precision)
    if precision == "fp16":
        engine.optimizer.loss_scaler.cur_scale = 256.0
    watch_gradients(engine)
    engine.train()
    losses = []
    for _ in range(STEPS):
        total = torch.zeros(())
        for batch in batches:
            loss, report = objective.loss(engine, batch.to(info.device, DTYPES[precision]), scale)
            engine.backward(loss)
            engine.step()
            total += report["loss_sum"].float()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / targets.item())
    stage = zero_stage(config)
    view = view_engine(engine, stage)
    delicate = [key for key, width in zip(view.keys, view.widths, strict=True) if width == 32]
    moments = [t for key in delicate for n, t in view.inner.state[key].items() if n != "step"]
    quantised = sum(m.numel() for m in moments if torch.is_tensor(m) and m.dtype == torch.uint8)
    assert quantised == 0, "norms, gates, routers, new tokens have moments in 32 bits"
    assert engine_state(engine)["skipped_steps"] == 0
    norm = float(engine.get_global_grad_norm() or 0.0)
    return losses, norm, state_bytes(view)


def try_all(info, root, combinations):
    from deepspeed.accelerator import get_accelerator

    # What a CPU computes slowly it computes rightly; DeepSpeed only asks whether it is fast.
    get_accelerator().is_fp16_supported = lambda: True
    found = {}
    for combination in combinations:
        try:
            found[combination] = take_steps(
                info, combination.config(root), combination.accumulation
            )
        except Exception as error:  # told with the combination
            found[combination] = f"{type(error).__name__}: {error}"[:300]
            raise RuntimeError(f"{combination}: {found[combination]}") from error
    return found


def references(combinations):
    """The plain way of each kind of experts and optimizer: fp32 under ZeRO-1, no accumulation."""
    return sorted(
        {
            Combination(
                "zero1", c.experts.replace("divided", "experts"), c.optimizer, "fp32", 1, False
            )
            for c in combinations
        },
        key=str,
    )


@pytest.mark.parametrize(("world_size", "count"), [(1, 6), (2, 18), (4, 6)])
def test_combinations_that_are_let_through_work(tiny_root, world_size, count):
    chosen = supported(tiny_root, world_size)
    everything = os.environ.get("ROSEATE_COMBINATIONS") == "all"
    if not everything:
        chosen = chosen[:count]
    if world_size == 2:
        for setting, values in (
            ("strategy", STRATEGIES),
            ("experts", EXPERTS),
            ("optimizer", OPTIMIZERS),
            ("precision", PRECISIONS),
        ):
            assert {getattr(c, setting) for c in chosen} == set(values), setting
    plain = references(chosen)
    (found, *_) = run_processes(try_all, world_size, tiny_root, [*plain, *chosen])
    for combination in chosen:
        losses, norm, sizes = found[combination]
        (reference,) = references([combination])
        expected, expected_norm, _ = found[reference]
        close = CLOSE[combination.precision]
        assert losses == pytest.approx(expected, rel=close), combination
        if combination.strategy != "zero0":  # DeepSpeed keeps none there
            assert norm == pytest.approx(expected_norm, rel=20 * close), combination
        assert ("uint8" in sizes and sizes["uint8"] > 0) == (combination.optimizer != "adamw"), (
            combination
        )
    if everything and world_size == 2 and "ROSEATE_TABLE" in os.environ:
        Path(os.environ["ROSEATE_TABLE"]).write_text(HEADING + table(tiny_root, found))


def table(root, found):
    """Rows of strategy and experts, columns of precision and optimizer."""
    columns = [(p, o) for p in PRECISIONS for o in OPTIMIZERS]
    lines = [
        "| strategy | experts | " + " | ".join(f"{p} {o}" for p, o in columns) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    tried = {(c.strategy, c.experts, c.precision, c.optimizer): c for c in all_combinations()}
    for strategy, experts in itertools.product(STRATEGIES, EXPERTS):
        cells = []
        for precision, optimizer in columns:
            combination = tried[strategy, experts, precision, optimizer]
            if combination in found:
                cells.append("works")
            else:
                problems = check_engine(combination.config(root), 2)
                cells.append("refused: " + ", ".join(sorted({p.key for p in problems})))
        lines.append(f"| {strategy} | {experts} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_what_is_not_let_through_says_why_and_what_works(tiny_root):
    refused = [c for c in all_combinations() if check_engine(c.config(tiny_root), 2)]
    assert refused
    for combination in refused:
        for problem in check_engine(combination.config(tiny_root), 2):
            assert "set " in problem.remedy, combination
