"""Killed at any micro-step and gone on: losses, parameters and moments equal an undisturbed run's."""

import os

import mlflow
import pytest
import torch

import pipeline.train
from tests.distributed.test_train import newest
from tests.helpers.faults import KilledError, train_with
from tests.helpers.processes import run_processes
from tests.helpers.tiny import tiny_config
from tests.helpers.waiting import PATIENT

pytestmark = pytest.mark.distributed
STEPS, ACCUMULATION = 4, 2
WIDE = "model.resampler={depth: 1, num_latents: 4, num_heads: 4, head_dim: 32}"
CASES = {
    "dense": ("optim.name=adamw", "model.experts={num_experts: 1, top_k: 1}"),
    "experts in 8 bits": ("optim={name: adamw_8bit, min_8bit_numel: 256}",),
    "8-bit Lion": ("optim={name: lion_8bit, min_8bit_numel: 256}", "engine.strategy=zero3"),
}


def config_of(root, name, world_size, *more):
    return tiny_config(
        root,
        f"name={name}",
        PATIENT,
        WIDE,
        f"batch={{global_size: {2 * ACCUMULATION * world_size}, micro_size: 2}}",
        f"train={{steps: {STEPS}, log_every_steps: 1, validate_every_steps: {STEPS}, validate_samples: 8}}",
        "checkpoint.every_steps=1",
        "engine.expert_parallel=1",
        *more,
    )


def everything(root, name):
    """All that a checkpoint holds, by kind, parameter and place; and the losses of the curve."""
    found = newest(root, name)
    held = {}
    for kind, names in found.index["chunks"].items():
        for parameter, entries in names.items():
            for start, numel, *_ in entries:
                (chunk,) = found.read(kind, parameter, start, start + numel)
                held[kind, parameter, start] = chunk.values
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    curve: dict[int, set[float]] = {}
    for point in client.get_metric_history(found.state["run_id"], "loss"):
        curve.setdefault(point.step, set()).add(point.value)
    return held, curve, found.state


def check_same(root, one, two):
    (held, curve, state), (other, other_curve, other_state) = (
        everything(root, name) for name in (one, two)
    )
    assert held.keys() == other.keys()
    for key, values in held.items():
        assert torch.equal(values, other[key]), key
    assert curve == other_curve and sorted(curve) == list(range(1, STEPS + 1))
    assert all(len(values) == 1 for values in curve.values()), "one value for every step"
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    runs = [r.info.run_name for r in client.search_runs([experiment.experiment_id])]
    assert runs.count(two) == 1, "also when it died before its first checkpoint"
    assert state["data"] == other_state["data"] and state["engine"] == other_state["engine"]


def killed_at(place):
    """A fault that ends the process before the backward of a micro-batch of this start."""

    def fault(step, rank, micro, loss, report, positions):
        if (step, micro) == place:
            raise KilledError
        return loss, report

    return fault


def killed_again_and_again(info, root, name, overrides):
    """Whole once, and once killed at many places; the group stays, since DeepSpeed has but one."""
    pipeline.train.stop_group = lambda: None
    train_with(config_of(root, f"whole_{name}", 1, *overrides))
    config = config_of(root, f"killed_{name}", 1, *overrides)
    # Before and within the first step of a start, and after one that is saved, so that the run gets on.
    for place in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 1), (1, 1), (0, 0)):
        try:
            train_with(config, killed_at(place))
        except KilledError:
            continue
        raise AssertionError(f"not killed at {place}")
    train_with(config)


@pytest.mark.parametrize("case", CASES)
def test_one_process_killed_at_every_micro_step(tiny_root, case):
    name = case.replace(" ", "_")
    run_processes(killed_again_and_again, 1, tiny_root, name, CASES[case])
    check_same(tiny_root, f"whole_{name}", f"killed_{name}")


def dying(info, root, name, overrides, place):
    """Training in which a process dies at a micro-step, really."""

    def fault(step, rank, micro, loss, report, positions):
        if place and (step, rank, micro) == place:
            os._exit(9)
        return loss, report

    train_with(config_of(root, name, info.world_size, *overrides), fault)


@pytest.mark.parametrize("world_size", [2, 4])
def test_one_of_the_ranks_dies(tiny_root, world_size):
    case = "experts in 8 bits"
    overrides = (*CASES[case], f"engine.expert_parallel={world_size}")
    run_processes(dying, world_size, tiny_root, f"whole_{world_size}", overrides, None)
    for place in [(2, world_size - 1, 1)]:
        with pytest.raises(RuntimeError, match="exit code 9"):
            run_processes(dying, world_size, tiny_root, f"dead_{world_size}", overrides, place)
    run_processes(dying, world_size, tiny_root, f"dead_{world_size}", overrides, None)
    check_same(tiny_root, f"whole_{world_size}", f"dead_{world_size}")
