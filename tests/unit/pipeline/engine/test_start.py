import pytest
import torch
from torch import nn

from data_prep.errors import ConfigError
from pipeline.engine.start import resolve_precision
from pipeline.engine.weights import load_trainable


def test_precision_is_taken_as_told_and_auto_asks_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    assert resolve_precision("bf16", cpu) == "bf16"
    for has_tiles, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has_tiles: has)
        assert resolve_precision("auto", cpu) == expected


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="train.precision = 'fp16'"):
        resolve_precision("fp16", torch.device("cpu"))


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
