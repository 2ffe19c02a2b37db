"""The data through the real command on two processes: packed, by workers, broken, changed."""

import json
import shutil

import pytest
import torch

from tests.distributed.test_train import ALONE, newest, train, weights
from tests.helpers.command import forked
from tests.helpers.dataset import write_dataset
from tests.helpers.tiny import OVERRIDES

pytestmark = pytest.mark.distributed
SAME = (ALONE, "optim.name=adamw")


@pytest.fixture(scope="module")
def plain(tiny_root):
    return train(tiny_root, "plain", *SAME)


def test_packed_rows_train_to_the_same_loss(tiny_root, plain):
    packed = train(tiny_root, "packed", *SAME, "data.pack_tokens=40")
    assert packed["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert packed["held_out_loss"] == pytest.approx(plain["held_out_loss"], rel=1e-5)
    one, two = (weights(tiny_root, name)[0] for name in ("plain", "packed"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4, msg=name)


def test_workers_change_nothing_to_the_bit(tiny_root, plain):
    train(tiny_root, "workers", *SAME, "data.workers=1")
    one, two = (weights(tiny_root, name)[0] for name in ("plain", "workers"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_checkpoint_knows_the_data_in_a_few_hundred_bytes(tiny_root, plain):
    state = newest(tiny_root, "plain").state
    assert state["data"]["position"] == 6 * 8
    assert len(json.dumps(state["data"])) < 1024


def test_a_run_goes_on_with_another_global_batch_where_it_was_in_the_data(tiny_root):
    train(tiny_root, "larger", *SAME, "train.steps=3")
    batch = "batch={global_size: 16, micro_size: 4}"
    summary = train(tiny_root, "larger", *SAME, batch)
    state = newest(tiny_root, "larger").state
    assert summary["resumed_at"] == 3 and state["data"]["position"] == 3 * 8 + 3 * 16


def test_features_from_a_cache_train_to_the_same_loss(tiny_root, plain):
    folder = f"data.features={tiny_root / 'features'}"
    forked("features", "demo", f"root={tiny_root}", *OVERRIDES, folder)
    cached = train(tiny_root, "cached", *SAME, folder)
    assert cached["loss"] == pytest.approx(plain["loss"], rel=1e-3)  # features are in float16
    assert cached["held_out_loss"] == pytest.approx(plain["held_out_loss"], rel=1e-3)


def test_a_changed_dataset_is_refused(tiny_root, tmp_path, plain):
    shutil.copytree(tiny_root / "plain", tiny_root / "changed")
    message = train(
        tiny_root, "changed", *SAME, "data.held_out_fraction=0.1", "train.steps=8", expect=2
    )
    assert "data.sources.laion" in message and "Traceback" not in message
    assert "bring the dataset, its bitmaps and held_out_fraction back" in message


def broken_dataset(folder, every: int):
    def sample(row: int) -> dict[str, bytes]:
        good = (folder.parent / "good.jpg").read_bytes()
        image = b"no image" if row % every == 0 else good
        return {"jpg": image, "txt": b"a large red star", "json": b"{}"}

    write_dataset(folder, [40], sample)


@pytest.mark.parametrize(
    ("every", "setting", "message"),
    [
        (3, "data.budget.percent=0.5", "samples could not be used, more than data.budget.percent"),
        (1, "data.budget.in_a_row=4", "4 samples in a row cannot be used"),
    ],
)
def test_a_spent_budget_ends_every_rank_with_exit_code_3(
    tiny_root, tmp_path, every, setting, message
):
    from data_prep.examples.scenes import make_training_scene, render

    render(make_training_scene(0)).save(tmp_path / "good.jpg")
    broken_dataset(tmp_path / "bad", every)
    name = f"budget_{every}"
    source = f"data.sources={{bad: {{path: {tmp_path / 'bad'}}}}}"
    said = train(tiny_root, name, *SAME, source, setting, "train.steps=60", expect=3)
    assert message in said and "Traceback" not in said
    if every > 1:
        listed = list((tiny_root / name / "unusable").glob("rank_*.jsonl"))
        keys = {json.loads(line)["key"] for path in listed for line in path.open()}
        assert keys <= {f"bad/{row:09d}" for row in range(0, 40, 3)} and len(keys) > 5
