"""The loop on two gloo processes: divided experts, exact continuation, gathered weights, refusals."""

import json
import shutil

import mlflow
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.storage import Folder
from pipeline.checkpoint.store import find_checkpoint
from tests.helpers.command import forked, run
from tests.helpers.tiny import OVERRIDES
from tests.helpers.waiting import PATIENT

ALONE = "engine.expert_parallel=1"

pytestmark = pytest.mark.distributed


def train(root, name, *overrides, processes=2, launched=False, expect=0):
    """Its summary; what it said where another exit code is expected.

    Args:
        launched: by the command's own `--processes`, in new Pythons.
    """
    path = root / f"{name}.json"
    how = ("demo", f"root={root}", *OVERRIDES, f"name={name}", PATIENT, *overrides, "--json", path)
    if launched:
        said = run("train", *how, "--processes", processes, expect=expect)
    else:
        said = forked("train", *how, processes=processes, expect=expect)
    return json.loads(path.read_text()) if expect == 0 else said.stderr


def weights(root, name):
    found = newest(root, name)
    return found.weights(), found.state


def newest(root, name):
    return find_checkpoint(Folder(root / name / "checkpoints", "checkpoint.folder"))


def test_experts_over_two_ranks_equal_experts_on_every_rank(tiny_root):
    divided = train(tiny_root, "ep2", "optim.name=adamw")
    whole = train(tiny_root, "ep1", "optim.name=adamw", "engine.expert_parallel=1")
    assert divided["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    one, two = weights(tiny_root, "ep2")[0], weights(tiny_root, "ep1")[0]
    assert one.keys() == two.keys()
    assert any("experts.gate_up_proj" in name for name in one)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4, msg=name)


def test_continuation_equals_an_undisturbed_run_to_the_bit(tiny_root):
    train(tiny_root, "whole")
    # The schedule spans all 6 steps in both; the first half ends at its checkpoint after step 3.
    stop = tiny_root / "stop"
    train(tiny_root, "halves", "checkpoint.every_steps=3")
    (last,) = (tiny_root / "halves/checkpoints").glob("step_000006")
    last.rename(stop)
    second = train(tiny_root, "halves", "checkpoint.every_steps=3")
    assert second["resumed_at"] == 3
    one, state = weights(tiny_root, "whole")
    two, resumed = weights(tiny_root, "halves")
    assert state["step"] == resumed["step"] == 6
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_states_are_8_bit_and_the_run_is_in_mlflow(tiny_root):
    wide = "model.resampler={depth: 1, num_latents: 4, num_heads: 4, head_dim: 32}"
    summary = train(tiny_root, "eight", wide, launched=True)
    assert summary["optimizer_state_bytes"]["uint8"] > 0
    client = mlflow.MlflowClient(f"sqlite:///{tiny_root}/mlflow.db")
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.name"] == "adamw_8bit"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 6
    for name in ("held_out_loss", "held_out_loss_zero_image"):
        assert run.data.metrics[name] == summary[name]


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_other_strategies_train_to_the_same_loss(tiny_root, strategy):
    name = f"with_{strategy}"
    other = train(
        tiny_root, name, f"engine.strategy={strategy}", "engine.expert_parallel=1",
        "optim.name=adamw",
    )  # fmt: skip
    base = train(tiny_root, f"base_{strategy}", "engine.expert_parallel=1", "optim.name=adamw")
    assert other["loss"] == pytest.approx(base["loss"], rel=1e-5)


def test_a_tower_that_changed_since_is_refused(tiny_root):
    train(tiny_root, "towers", "train.steps=1")
    other = tiny_root / "other_vision"
    shutil.copytree(tiny_root / "vision", other)
    tensors = load_file(other / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    message = train(tiny_root, "towers", f"model.vision.path={other}", expect=2)
    assert "model.vision.path = 'weights" in message and "Traceback" not in message


def test_a_gated_block_beyond_the_model_is_refused(tiny_root):
    far = "model.cross_attention.first_layer=99"
    message = train(tiny_root, "t", far, ALONE, processes=1, expect=2)
    assert "first_layer = 99" in message and "Traceback" not in message


def test_missing_towers_are_refused(tiny_root):
    message = train(tiny_root, "t", "model.vision.path=/nowhere", ALONE, processes=1, expect=2)
    assert "model.vision.path" in message and "roseate train demo_vision" in message


def test_folder_that_is_no_dataset_is_refused(tiny_root):
    message = train(
        tiny_root, "t", f"data.sources.laion.path={tiny_root}/vision", ALONE, processes=1, expect=2
    )
    assert "data.sources.laion.path" in message and "Traceback" not in message


def test_indivisible_batch_is_refused(tiny_root):
    message = train(tiny_root, "t", "batch.global_size=9", launched=True, expect=2)
    assert message.count("batch.global_size = 9") == 1
