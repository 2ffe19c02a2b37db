"""Changed in the middle of a run: ranks, stage, accumulation, batch, schedule, weights, what is trained."""

import shutil

import pytest
import torch

from data_prep.storage import Folder
from pipeline.checkpoint.container import Checkpoint
from pipeline.checkpoint.store import find_checkpoint
from pipeline.trained import open_trained
from tests.distributed.test_healing_run import events
from tests.distributed.test_train import newest, train, weights
from tests.helpers.s3 import s3_bucket

pytestmark = pytest.mark.distributed
ALONE = "engine.expert_parallel=1"
EXACT = ("optim={name: adamw_8bit, min_8bit_numel: 256}",)
LAYER = r"language\.model\.layers\.1\..*"


@pytest.fixture(scope="module")
def whole(tiny_root):
    return train(tiny_root, "undisturbed", *EXACT, "engine.expert_parallel=2")


@pytest.mark.parametrize(
    "layout",
    [
        ("engine={strategy: zero3, expert_parallel: 1}",),
        ("engine={strategy: zero1, expert_parallel: 1}", "batch.micro_size=2"),
    ],
)
def test_another_layout_goes_on_to_the_same_loss(tiny_root, whole, layout):
    name = f"layout_{layout[0].count('3')}"
    train(
        tiny_root,
        name,
        *EXACT,
        "train.steps=3",
        "engine.expert_parallel=2",
        "optim.schedule=constant",
    )
    schedule = ("optim.schedule=constant",)
    base = train(tiny_root, f"base_{name}", *EXACT, "engine.expert_parallel=2", *schedule)
    other = train(tiny_root, name, *EXACT, *schedule, *layout, processes=1)
    assert other["resumed_at"] == 3 and other["world_size"] == 1
    # Measured: 2e-7 to 6e-6; sums over ranks and blocks in another order.
    assert other["loss"] == pytest.approx(base["loss"], rel=1e-4)
    assert other["held_out_loss"] == pytest.approx(base["held_out_loss"], rel=1e-4)


def test_what_changes_is_told_and_takes_effect(tiny_root):
    train(tiny_root, "changing", "train.steps=3", ALONE)
    changes = (
        *("optim.lr=5e-4", "optim.schedule=constant", "data.sources.laion.weight=3.0"),
        "batch={global_size: 16, micro_size: 4}",
    )
    train(tiny_root, "changing", *changes, ALONE)
    (event,) = [e for e in events(tiny_root, "changing") if e["kind"] == "config"]
    changed = event["details"]["changed"]
    assert changed["optim.lr"] == [2e-3, 5e-4] and changed["batch.global_size"] == [8, 16]
    assert changed["train.steps"] == [3, 6] and "data.sources.laion.weight" in changed
    state = newest(tiny_root, "changing").state
    assert state["data"]["position"] == 3 * 8 + 3 * 16
    assert [position for position, _ in state["data"]["weights"]] == [0, 24]


def test_part_of_a_tower_is_trained_from_a_step_on(tiny_root):
    entry = f"train.unfreeze=[{{step: 3, parameters: '{LAYER}', lr_scale: 0.1}}]"
    train(tiny_root, "frozen", "train.steps=6", *EXACT)
    often = "checkpoint={every_steps: 3, keep_last: 5}"
    train(tiny_root, "grown", "train.steps=6", *EXACT, entry, often)
    before, grown = newest(tiny_root, "frozen"), newest(tiny_root, "grown")
    new = set(grown.shapes) - set(before.shapes)
    assert new and all(name.startswith("language.model.layers.1.") for name in new)
    assert {grown.steps[n] for n in new} == {3}, "their moments have seen the steps since"
    assert {grown.steps[n] for n in before.shapes} == {6}, "and nothing else was reset"
    # Until then it is the run without.
    third = Checkpoint(grown.store, "step_000003")
    assert set(third.shapes) == set(before.shapes)
    # Going on from there again gives the same, to the bit.
    final = grown.weights()
    for name in new:
        assert torch.isfinite(final[name]).all()
    shutil.rmtree(grown.store.path / "step_000006")
    summary = train(tiny_root, "grown", "train.steps=6", *EXACT, entry, often)
    assert summary["resumed_at"] == 3
    again = newest(tiny_root, "grown").weights()
    assert all(torch.equal(final[name], again[name]) for name in final)


def test_an_entry_that_names_nothing_is_refused_at_the_start(tiny_root):
    entry = "train.unfreeze=[{step: 3, parameters: 'langauge.*'}]"
    message = train(tiny_root, "typo", entry, ALONE, processes=1, expect=2)
    assert "train.unfreeze.0.parameters = 'langauge.*'" in message and "Traceback" not in message


def test_another_optimizer_is_refused_and_32_bits_are_not(tiny_root):
    train(tiny_root, "optimizer", "train.steps=1", *EXACT, ALONE)
    message = train(tiny_root, "optimizer", "optim.name=lion_8bit", ALONE, processes=1, expect=2)
    assert "optim.name = 'lion_8bit'" in message
    summary = train(tiny_root, "optimizer", "optim.name=adamw", ALONE, "train.steps=2", processes=1)
    assert summary["resumed_at"] == 1 and set(summary["optimizer_state_bytes"]) == {"float32"}


def test_evaluation_reads_what_was_unfrozen(tiny_root):
    entry = f"train.unfreeze=[{{step: 0, parameters: '{LAYER}'}}]"
    train(tiny_root, "thawed", "train.steps=2", entry, ALONE, processes=1)
    loaded, state = weights(tiny_root, "thawed")
    assert any(name.startswith("language.") for name in loaded) and state["step"] == 2
    trained = open_trained(str(tiny_root / "thawed"))
    own = dict(trained.objective.model.named_parameters())
    assert all(torch.equal(own[name], loaded[name]) for name in loaded)


def test_checkpoints_in_an_object_store_go_on_with_other_ranks(tiny_root):
    with s3_bucket() as bucket:
        place = (f"checkpoint.folder={bucket.url}/run", *EXACT, ALONE)
        train(tiny_root, "store", *place, "train.steps=2", processes=1)
        summary = train(tiny_root, "store", *place, "train.steps=4")
        assert summary["resumed_at"] == 2 and summary["world_size"] == 2
        found = find_checkpoint(Folder(f"{bucket.url}/run", "checkpoint.folder"))
        assert found.step == 4 and not (tiny_root / "store" / "checkpoints").exists()
        found.verify()
        assert set(found.steps.values()) == {4}
