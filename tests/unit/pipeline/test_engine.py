import pytest
import torch
from torch import nn

from data_prep.errors import ConfigError
from pipeline import engine
from pipeline.engine import load_trainable, resolve_precision


def test_precision_is_taken_as_told_and_auto_asks_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    assert resolve_precision("bf16", cpu) == "bf16"
    for has_tiles, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has_tiles: has)
        assert resolve_precision("auto", cpu) == expected


def test_divided_experts_get_the_names_of_the_undivided_model():
    gate, down, up = torch.randn(4, 6, 3), torch.randn(4, 3, 6), torch.randn(4, 6, 3)
    block = "gated_blocks.1.feed_forward.routed"
    found = engine._undivided_names(
        {
            f"{block}.router.gate.weight": torch.ones(4, 3),
            f"{block}.experts.w1": gate,
            f"{block}.experts.w2": down,
            f"{block}.experts.w3": up,
            "resampler.latents": torch.zeros(2, 3),
        }
    )
    assert set(found) == {
        f"{block}.gate.weight",
        f"{block}.experts.gate_up_proj",
        f"{block}.experts.down_proj",
        "resampler.latents",
    }
    assert torch.equal(found[f"{block}.experts.gate_up_proj"][:, :6], gate)
    assert torch.equal(found[f"{block}.experts.gate_up_proj"][:, 6:], up)
    assert torch.equal(found[f"{block}.experts.down_proj"], down)


def test_weights_go_back_and_wrong_ones_change_nothing():
    module = nn.Linear(3, 2)
    load_trainable(module, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    assert torch.equal(module.weight, torch.ones(2, 3))
    for wrong in (
        {"weight": torch.zeros(2, 3)},
        {"weight": torch.zeros(3, 3), "bias": torch.ones(2)},
    ):
        with pytest.raises(ConfigError, match="have the same parameters"):
            load_trainable(module, wrong)
    assert torch.equal(module.weight, torch.ones(2, 3))
    assert torch.equal(module.bias, torch.zeros(2))
