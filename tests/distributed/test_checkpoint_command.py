"""`roseate checkpoint`: what is there, its weights, and DeepSpeed's own folder there and back."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.test_resume import everything
from tests.distributed.test_train import newest, train
from tests.helpers.command import forked
from tests.helpers.tiny import OVERRIDES

pytestmark = pytest.mark.distributed
EXACT = ("optim={name: adamw_8bit, min_8bit_numel: 256}",)


def checkpoint(root, *arguments, processes=1, expect=0):
    """What it prints; what it said where another exit code is expected."""
    at = next((i for i, a in enumerate(arguments) if "=" in a), len(arguments))
    words, settings = arguments[:at], (f"root={root}", *OVERRIDES, *EXACT, *arguments[at:])
    said = forked("checkpoint", *words, *settings, processes=processes, expect=expect)
    return said.stdout if expect == 0 else said.stderr


@pytest.fixture(scope="module")
def trained(tiny_root):
    train(tiny_root, "there", *EXACT, "train.steps=2")
    return newest(tiny_root, "there")


def test_list_shows_what_is_there_and_what_is_broken(tiny_root, trained):
    out = checkpoint(tiny_root, "list", "demo", "name=there")
    assert "whole" in out and "2 ranks, ZeRO-2, experts/2" in out
    train(tiny_root, "hurt", *EXACT, "train.steps=1")
    data = tiny_root / "hurt" / "checkpoints" / "step_000001" / "rank_00001.safetensors"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    path = tiny_root / "list.json"
    out = checkpoint(tiny_root, "list", "demo", "name=hurt", "--verify", "--json", str(path))
    assert "has another checksum" in out
    assert "rank_00001" in json.loads(path.read_text())[0]["problem"]
    assert "no checkpoints in" in checkpoint(tiny_root, "list", "demo", "name=nobody")


def test_weights_come_out_as_one_file(tiny_root, trained, tmp_path):
    checkpoint(tiny_root, "weights", "demo", str(tmp_path / "w.safetensors"), "name=there")
    written, weights = load_file(tmp_path / "w.safetensors"), trained.weights()
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], weights[name]) for name in written)
    message = checkpoint(tiny_root, "weights", "demo", str(tmp_path / "x"), "name=nobody", expect=2)
    assert "name = 'nobody'" in message and "has a checkpoint in" in message


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_to_deepspeed_and_back_is_the_same_checkpoint(tiny_root, trained, tmp_path, strategy):
    folder, how = str(tmp_path / "ds"), f"engine.strategy={strategy}"
    checkpoint(tiny_root, "to-deepspeed", "demo", folder, "name=there", how, processes=2)
    assert (tmp_path / "ds" / "latest").read_text() == "step_000002"
    back = f"back_{strategy}"
    checkpoint(tiny_root, "from-deepspeed", "demo", folder, f"name={back}", how, processes=2)
    (held, _, state), (other, _, other_state) = (everything(tiny_root, n) for n in ("there", back))
    assert state["data"] == other_state["data"] and state["run_id"] == other_state["run_id"]
    found, again = newest(tiny_root, "there"), newest(tiny_root, back)
    one, two = found.weights(), again.weights()
    assert all(torch.equal(one[name], two[name]) for name in one) and found.steps == again.steps
    if strategy == "zero2":
        assert held.keys() == other.keys()
        assert all(torch.equal(held[key], other[key]) for key in held)
    message = checkpoint(
        tiny_root, "from-deepspeed", "demo", folder, f"name={back}", how, processes=2, expect=2
    )
    assert "has no checkpoints yet" in message


def test_what_is_no_folder_of_deepspeed_is_refused(tiny_root, tmp_path):
    alone = ("name=none", "engine.expert_parallel=1")
    message = checkpoint(tiny_root, "from-deepspeed", "demo", str(tmp_path), *alone, expect=2)
    assert "it has no file `latest`" in message and "Traceback" not in message
