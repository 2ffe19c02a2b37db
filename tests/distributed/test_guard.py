"""A bad micro-batch on one rank: every rank skips the step, to the bit, and goes on as if it had not been."""

import hashlib

import pytest
import torch
from torch import nn

from pipeline.healing.guard import poison, skip_reason, was_skipped, watch_gradients
from tests.helpers.processes import run_processes

pytestmark = pytest.mark.distributed

MICRO_STEPS = 2
# Stage, precision and optimizer. Without ZeRO only fp32 is trained.
SETTINGS = [
    (0, "fp32", "adamw"),
    (1, "fp32", "adamw"),
    (1, "bf16", "adamw"),
    (2, "fp32", "adamw"),
    (2, "bf16", "adamw"),
    (2, "bf16", "adamw_8bit"),
    (2, "bf16", "adamw_offloaded"),
    (3, "fp32", "adamw"),
    (3, "bf16", "adamw"),
    (3, "bf16", "adamw_8bit"),
    (3, "bf16", "adamw_offloaded"),
]


def start(stage, precision, optimizer):
    import deepspeed

    torch.manual_seed(0)
    # Wide enough that moments of 8 bits are made.
    module = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 64))
    settings = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": MICRO_STEPS,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 20000},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if optimizer == "adamw_offloaded":
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if optimizer == "adamw_8bit":
        import bitsandbytes

        made = bitsandbytes.optim.AdamW8bit(module.parameters(), lr=1e-2)
    else:
        made = torch.optim.AdamW(module.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=module, optimizer=made, config=settings)
    watch_gradients(engine)
    return engine


def step(engine, info, number, spoil=None):
    """Optimizer step `number`; `spoil` (loss, micro-step, rank) may make something not finite."""
    generator = torch.Generator().manual_seed(100 * number + info.rank)
    for micro_step in range(MICRO_STEPS):
        x = torch.randn(4, 64, generator=generator).to(next(engine.module.parameters()).dtype)
        loss = engine(x).float().pow(2).mean()
        if spoil:
            loss = spoil(loss, micro_step, info.rank)
        engine.backward(poison(loss))
        engine.step()


def digest(engine):
    """Of everything that an optimizer step may change on this rank."""
    optimizer = engine.optimizer
    # Of a parameter that ZeRO-3 has divided the part that is kept here, whether or not it is gathered now.
    held = [getattr(p, "ds_tensor", p).detach() for p in engine.module.parameters()]
    inner = getattr(optimizer, "optimizer", optimizer)
    for group in inner.param_groups:
        held += [p.detach() for p in group["params"]]
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        held += [p.detach() for p in getattr(optimizer, name, [])]
    for state in inner.state.values():
        for key in sorted(state):
            value = state[key]
            held.append(value if torch.is_tensor(value) else torch.tensor(value))
    sha = hashlib.sha256()
    for tensor in held:
        if tensor.is_floating_point():
            assert tensor.isfinite().all()
        sha.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def nan_loss(loss, micro_step, rank):
    """One micro-batch of the last rank; the gradient of this NaN is finite."""
    last = torch.distributed.get_world_size() - 1
    return loss + float("nan") if (micro_step, rank) == (0, last) else loss


def hidden_inf(loss, micro_step, rank):
    """An inf whose gradient is nothing at all."""
    return loss * 0 + float("inf") if (micro_step, rank) == (1, 0) else loss


def bad_gradient(loss, micro_step, rank):
    """The loss is finite, its gradient is not: the root at 0."""
    return loss + (loss - loss).sqrt() if (micro_step, rank) == (1, 0) else loss


def visit(info, settings):
    """For each setting: what the engine says of each step, and digests of what it held after them."""
    rows = []
    for setting in settings:
        engine = start(*setting)
        told, digests = [], []
        for number, spoil in enumerate((None, nan_loss, hidden_inf, bad_gradient, None)):
            step(engine, info, 0 if spoil else number, spoil)
            told.append(was_skipped(engine))
            digests.append(digest(engine))
        counters = engine.global_steps, engine.skipped_steps
        other = start(*setting)
        for number in (0, 4):
            step(other, info, number)
        rows.append((told, digests, counters, digest(other)))
        reasons = {skip_reason(engine, loss_was_finite=finite) for finite in (True, False)}
        assert reasons == {None}
    return rows


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_bad_step_is_skipped_by_all_ranks_and_changes_nothing(processes):
    results = run_processes(visit, processes, SETTINGS)
    for number, setting in enumerate(SETTINGS):
        for told, digests, counters, undisturbed in (rows[number] for rows in results):
            assert told == [False, True, True, True, False], setting
            assert digests[0] == digests[1] == digests[2] == digests[3] != digests[4], setting
            assert counters == (5, 3), setting
            # The step after is the one that would have followed had there been no bad one.
            assert digests[4] == undisturbed, setting
