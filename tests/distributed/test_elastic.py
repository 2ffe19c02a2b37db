"""A checkpoint of any layout fills any other: masters, moments and 8-bit codes equal to the bit.

For 1, 2 and 4 ranks each layout trains three steps and saves; then each layout is filled from the checkpoint of
every other, and what it would save is compared with what was saved.
"""

import math

import pytest
import torch

from data_prep.storage import Folder
from pipeline.batch_plan import BatchPlan
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.resume import engine_state, restore_engine
from pipeline.checkpoint.store import find_checkpoint
from pipeline.checkpoint.writer import CheckpointWriter
from pipeline.data.held_out import HeldOut
from pipeline.engine.blockwise import code_maps
from pipeline.engine.fragments import view_engine
from pipeline.engine.start import start_engine, state_bytes
from pipeline.objectives import FlamingoObjective, LossScale
from tests.helpers.processes import run_processes
from tests.helpers.tiny import tiny_config

# Two minutes and a half for the longest, where nobody else wants the cores.
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]
# Stage of ZeRO, expert parallelism.
LAYOUTS = {
    1: [(1, 1), (2, 1), (3, 1), (0, 1)],
    2: [(1, 1), (2, 2), (3, 1), (3, 2)],
    4: [(2, 2), (3, 4), (1, 4)],
}
EVERY = [(world_size, *layout) for world_size, layouts in LAYOUTS.items() for layout in layouts]
SAMPLES = 8


def config_of(root, optimizer, stage, expert_parallel):
    return tiny_config(
        root,
        f"optim={{name: {optimizer}, min_8bit_numel: 500, warmup_steps: 0}}",
        "model.experts={num_experts: 4, top_k: 2, every: 1, shared_expert: true}",
        # Sizes that no number of ranks divides into whole blocks.
        "model.resampler={depth: 1, num_latents: 3, num_heads: 3, head_dim: 7}",
        "model.cross_attention={every: 1, num_heads: 3, head_dim: 6, gate_init: 1.0}",
        f"engine={{strategy: zero{stage}, expert_parallel: {expert_parallel}}}",
    )


def started(info, config, stage):
    plan = BatchPlan(SAMPLES, SAMPLES // info.world_size, info.world_size)
    objective = FlamingoObjective(config)
    engine = start_engine(config, objective.model, plan, "fp32")
    engine.train()
    return engine, objective, plan


def train_and_save(info, root, folder, optimizer):
    """What each layout of this number of ranks has after three steps, as a checkpoint; bytes of moments."""
    found = {}
    for stage, parallel in LAYOUTS[info.world_size]:
        config = config_of(root, optimizer, stage, parallel)
        engine, objective, plan = started(info, config, stage)
        held_out = HeldOut(config.data, objective.text, objective.image)
        (batch,) = held_out.batches(SAMPLES, plan.micro_size, info.rank, info.world_size)
        targets = torch.tensor(float(batch.num_target_tokens))
        torch.distributed.all_reduce(targets)
        for _ in range(3):
            loss, _ = objective.loss(
                engine,
                batch.to(info.device, torch.float32),
                LossScale(targets.item(), info.world_size),
            )
            engine.backward(loss)
            engine.step()
        save(info, engine, stage, f"{folder}/{info.world_size}_{stage}_{parallel}")
        found[stage, parallel] = state_bytes(view_engine(engine, stage))
    return found


def fill_from_all(info, root, folder, optimizer, sources):
    """Each layout of this number of ranks, filled from every checkpoint and saved again."""
    for stage, parallel in LAYOUTS[info.world_size]:
        config = config_of(root, optimizer, stage, parallel)
        engine, *_ = started(info, config, stage)
        for source in sources:
            name = "_".join(map(str, source))
            restore_engine(engine, stage, newest(f"{folder}/{name}", info))
            mine = f"{info.world_size}_{stage}_{parallel}"
            save(info, engine, stage, f"{folder}/{mine}_from_{name}")


def save(info, engine, stage, folder):
    store = Folder(folder, "checkpoint.folder")
    writer = CheckpointWriter(store, CheckpointConfig(), info)
    state = {"step": 3, "engine": engine_state(engine), "config": {}, "frozen": {}}
    writer.save(view_engine(engine, stage), stage, state)
    writer.settle(survive=False)


def newest(folder, info=None):
    return find_checkpoint(Folder(folder, "checkpoint.folder"), info)


def moment(found, number, name, maps):
    """A whole moment in 32 bits, and which of its elements are kept in 8."""
    total = math.prod(found.shapes[name])
    values, quantised = torch.full((total,), torch.nan), torch.zeros(total, dtype=torch.bool)
    for chunk in found.read(f"exact{number}", name, 0, total):
        values[chunk.start : chunk.start + len(chunk.values)] = chunk.values
    scales = torch.full((-(-total // 256),), torch.nan)
    for chunk in found.read(f"absmax{number}", name, 0, len(scales)):
        scales[chunk.start : chunk.start + len(chunk.values)] = chunk.values
    for chunk in found.read(f"codes{number}", name, 0, total):
        part = slice(chunk.start, chunk.start + len(chunk.values))
        quantised[part] = True
        places = torch.arange(part.start, part.stop) // 256
        values[part] = maps[number - 1][chunk.values.int()] * scales[places]
    assert not values.isnan().any(), name
    return values, quantised


def codes(found, kind, name, total):
    whole = torch.zeros(total, dtype=torch.uint8)
    for chunk in found.read(kind, name, 0, total):
        whole[chunk.start : chunk.start + len(chunk.values)] = chunk.values
    return whole


def check_equal(one, two, moments, where):
    assert one.shapes == two.shapes and one.steps == two.steps, where
    maps = code_maps("adam" if moments == 2 else "lion")
    weights, others = one.weights(), two.weights()
    for name in one.shapes:
        assert torch.equal(weights[name], others[name]), (where, name)
        for number in range(1, moments + 1):
            (a, in_a), (b, in_b) = (moment(c, number, name, maps) for c in (one, two))
            assert torch.equal(a, b), (where, name, number)
            both = in_a & in_b
            total = len(both)
            first, second = (codes(c, f"codes{number}", name, total) for c in (one, two))
            assert torch.equal(first[both], second[both]), (where, name, number)
            # A block that a boundary cut once, here or there, is in 32 bits; there are few of them.
            assert in_b.sum() >= in_a.sum() - 256 * 8


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "adamw", "lion_8bit"])
def test_every_layout_fills_every_other(tiny_root, tmp_path, optimizer):
    sizes = (4, 2, 1) if optimizer == "adamw_8bit" else (2,)
    for world_size in sizes:
        ranks = run_processes(train_and_save, world_size, tiny_root, tmp_path, optimizer)
        if optimizer == "adamw_8bit":
            for layout in LAYOUTS[world_size]:
                assert sum(rank[layout]["uint8"] for rank in ranks) > 0, layout
    sources = [source for source in EVERY if source[0] in sizes]
    for world_size in sizes:
        run_processes(fill_from_all, world_size, tiny_root, tmp_path, optimizer, sources)
    moments = 1 if optimizer == "lion_8bit" else 2
    for source in sources:
        name = "_".join(map(str, source))
        saved = newest(f"{tmp_path}/{name}")
        for target in sources:
            filled = newest(f"{tmp_path}/{'_'.join(map(str, target))}_from_{name}")
            check_equal(saved, filled, moments, f"{source} -> {target}")
