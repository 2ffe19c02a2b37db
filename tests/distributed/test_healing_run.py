"""Whole runs with bad batches in them: skipped by all ranks, or left behind by a return to a checkpoint."""

from contextlib import suppress

import mlflow
import pytest
import torch

import pipeline.train
from data_prep.storage import Folder
from pipeline.checkpoint.store import find_checkpoint, names
from pipeline.errors import CannotGoOnError
from pipeline.healing.journal import read_lines
from pipeline.healing.quarantine import read_quarantine
from tests.distributed.test_train import train
from tests.helpers.faults import KilledError, train_with
from tests.helpers.processes import run_processes
from tests.helpers.tiny import tiny_config
from tests.helpers.waiting import PATIENT

pytestmark = pytest.mark.distributed
ALONE = "engine.expert_parallel=1"


def config_of(root, name, *more):
    return tiny_config(root, f"name={name}", PATIENT, "data.workers=0", ALONE, *more)


def events(root, name):
    return read_lines(root / name / "events.jsonl")


def of_kind(root, name, kind):
    return [event for event in events(root, name) if event["kind"] == kind]


def run_with_a_bad_loss(info, root):
    """One micro-batch of one rank has a loss that is not finite; the keys that rank saw in it."""
    seen = {}

    def fault(step, rank, micro, loss, report, positions):
        if (step, rank, micro) == (2, 1, 1):
            seen["positions"] = positions
            return loss * torch.inf, report
        return loss, report

    batch = "batch={global_size: 8, micro_size: 2}"
    summary = train_with(config_of(root, "bad_loss", batch), fault)
    return summary, seen.get("positions")


def test_a_loss_that_is_not_finite_is_skipped_by_all_and_its_samples_listed(tiny_root):
    (summary, _), (_, positions) = run_processes(run_with_a_bad_loss, 2, tiny_root)
    assert summary["finished"]
    (skip,) = of_kind(tiny_root, "bad_loss", "skip")
    assert skip["step"] == 3 and skip["details"] == {"micro_batches_with_bad_loss": 1}
    suspects = read_quarantine(tiny_root / "bad_loss")
    assert [s["position"] for s in suspects] == sorted(positions)
    assert {s["reason"] for s in suspects} == {"loss"} and {s["step"] for s in suspects} == {3}
    client = mlflow.MlflowClient(f"sqlite:///{tiny_root}/mlflow.db")
    (point,) = client.get_metric_history(summary["mlflow_run_id"], "events/skip")
    assert (point.step, point.value) == (3, 1)
    curve = client.get_metric_history(summary["mlflow_run_id"], "loss")
    assert [p.step for p in curve] == [1, 2, 4, 5, 6], "a skipped step has no point"
    found = find_checkpoint(Folder(tiny_root / "bad_loss" / "checkpoints", "x"))
    assert set(found.steps.values()) == {5}, "moments have seen one step less"
    assert all(w.isfinite().all() for w in found.weights().values())


def test_too_many_skips_end_the_run_with_exit_code_4(tiny_root):
    hopeless = ("optim.lr=1e30", "healing.skip_budget=2", "train.steps=40", ALONE)
    message = train(tiny_root, "hopeless", *hopeless, launched=True, expect=4)
    assert "3 of the last 1000 steps were not finite (healing.skip_budget=2)" in message
    assert "quarantine" in message
    assert len(of_kind(tiny_root, "hopeless", "skip")) == 3


LONG = (
    "train={steps: 40, log_every_steps: 1, validate_every_steps: 40, validate_samples: 16}",
    "checkpoint={every_steps: 5, keep_last: 3}",
    "healing={spike_window: 16, spike_steps: 2, spike_margin: 3}",
    "optim.lr=1e-5",
)
BAD = range(8 * 21, 8 * 30)  # positions of samples that make the loss spike


def spiking(step, rank, micro, loss, report, positions):
    share = sum(p in BAD for p in positions) / len(positions)
    return loss, report | {"loss_sum": report["loss_sum"] * (1 + 20 * share)}


def run_with_a_spike(info, root, name, killed, budget):
    pipeline.train.stop_group = lambda: None
    config = config_of(root, name, *LONG, f"healing.rollback_budget={budget}")
    if killed:

        def dies_after_rolling_back(step, rank, micro, loss, report, positions):
            if step == 25:  # of this process, the third after the return
                raise KilledError
            return spiking(step, rank, micro, loss, report, positions)

        with suppress(KilledError):
            train_with(config, dies_after_rolling_back)
    try:
        return train_with(config, spiking)
    except CannotGoOnError as error:
        return str(error)


@pytest.mark.parametrize("killed", [False, True])
def test_a_spike_is_left_behind(tiny_root, killed):
    name = f"spike_{killed}"
    (summary, *_) = run_processes(run_with_a_spike, 2, tiny_root, name, killed, 3)
    assert summary["finished"]
    rollbacks = of_kind(tiny_root, name, "rollback")
    first = rollbacks[0]
    # Noticed at the second bad step; the checkpoint at 20 is nearer than the margin.
    assert first["details"]["began"] == 22 and first["step"] == 23
    assert first["details"]["to_step"] == 15 and first["position"] == 8 * 23
    # The bad stretch is longer than what one return skips, and never gone through twice.
    assert first["position"] < rollbacks[-1]["position"]
    found = find_checkpoint(Folder(tiny_root / name / "checkpoints", "x"))
    assert found.step == 40
    assert found.state["rollbacks"] == len(rollbacks)
    skipped = sum(r["step"] - r["details"]["to_step"] for r in rollbacks)
    assert found.state["data"]["position"] == 8 * (40 + skipped)


def test_too_many_returns_end_the_run(tiny_root):
    (message, other) = run_processes(run_with_a_spike, 2, tiny_root, "doomed", False, 0)
    assert "the loss left its curve at step 22" in message and message == other
    assert "healing.rollback_budget=0" in message
    assert names(Folder(tiny_root / "doomed" / "checkpoints", "x"))


def run_without_a_way_back(info, root):
    config = config_of(root, "no_way_back", *LONG, "checkpoint.every_steps=100")
    return train_with(config, spiking)


def test_without_an_earlier_checkpoint_the_run_goes_on_and_says_so(tiny_root):
    (summary,) = run_processes(run_without_a_way_back, 1, tiny_root)
    assert summary["finished"]
    assert of_kind(tiny_root, "no_way_back", "spike") and not of_kind(
        tiny_root, "no_way_back", "rollback"
    )
