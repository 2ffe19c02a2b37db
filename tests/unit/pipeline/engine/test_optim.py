"""Schedule values, decay groups, and the 8-bit optimizer against AdamW."""

import pytest
import torch
from torch import nn

from data_prep.errors import ConfigError
from pipeline.engine.config import OptimConfig, UnfreezeConfig
from pipeline.engine.optim import build_optimizer, learning_rate, parameter_groups
from pipeline.engine.unfreeze import next_phase, unfreeze


def test_schedule_at_its_corners():
    config = OptimConfig(lr=1.0, warmup_steps=10, schedule="cosine")
    assert learning_rate(config, 0, 110) == 0.1
    assert learning_rate(config, 9, 110) == 1.0
    assert learning_rate(config, 60, 110) == pytest.approx(0.5)
    assert learning_rate(config, 109, 110) < 0.001
    constant = config.model_copy(update={"schedule": "constant"})
    assert learning_rate(constant, 109, 110) == 1.0
    wsd = config.model_copy(update={"schedule": "wsd", "decay_steps": 20})
    assert learning_rate(wsd, 89, 110) == 1.0
    assert learning_rate(wsd, 100, 110) == pytest.approx(0.5)
    assert learning_rate(wsd, 109, 110) == pytest.approx(0.05)


def test_each_trainable_parameter_is_in_one_group_and_frozen_in_none():
    module = nn.ModuleDict({"resampler": nn.Linear(4, 4), "block": nn.Linear(4, 4)})
    module["resampler"].latents = nn.Parameter(torch.zeros(3, 4))
    module["gate"] = nn.Linear(4, 2, bias=False)
    module["block"].bias.requires_grad_(False)
    matrices, resampler, delicate = parameter_groups(module, 0.1)
    assert [id(p) for p in matrices["params"]] == [id(module["block"].weight)]
    assert [id(p) for p in resampler["params"]] == [id(module["resampler"].weight)]
    wanted = {module["resampler"].bias, module["resampler"].latents, module["gate"].weight}
    assert set(delicate["params"]) == wanted
    groups = (matrices, resampler, delicate)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0]
    assert [g["optim_bits"] for g in groups] == [8, 8, 32]


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "lion_8bit"])
def test_optimizers_find_the_minimum(name):
    torch.manual_seed(0)
    module = nn.Linear(128, 64)
    optimizer = build_optimizer(
        OptimConfig(name=name, lr=0.004 if name == "lion_8bit" else 0.02, weight_decay=0), module
    )
    x, y = torch.randn(256, 128), torch.randn(256, 64) * 0.1
    losses = []
    for _ in range(60):
        loss = (module(x) - y).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_8bit_states_are_8_bit_for_matrices_and_32_bit_for_delicate_ones():
    module = nn.Linear(128, 64)
    module.gate = nn.Linear(128, 64, bias=False)
    optimizer = build_optimizer(OptimConfig(), module)
    (module.gate(torch.randn(4, 128)).sum() + module(torch.randn(4, 128)).sum()).backward()
    optimizer.step()
    assert optimizer.state[module.weight]["codes1"].numel() == 64 * 128
    assert optimizer.state[module.weight]["exact1"].numel() == 0
    assert optimizer.state[module.gate.weight]["codes1"].numel() == 0
    assert optimizer.state[module.gate.weight]["exact1"].dtype == torch.float32


def test_what_an_entry_unfroze_has_groups_and_a_rate_of_its_own():
    module = nn.ModuleDict({"block": nn.Linear(4, 4), "tower": nn.Linear(4, 4)})
    module["tower"].requires_grad_(False)
    entries = [UnfreezeConfig(step=3, parameters=r"tower\..*", lr_scale=0.1)]
    assert unfreeze(module, entries, 2) == set()
    assert next_phase(entries, 0, 10) == 3 and next_phase(entries, 3, 10) == 10
    assert unfreeze(module, entries, 3) == {"tower.weight", "tower.bias"}
    groups = parameter_groups(module, 0.1, entries)
    assert [g["lr_scale"] for g in groups] == [1.0, 1.0, 0.1, 0.1]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.1, 0.0]
    assert groups[2]["name"] == "matrices of train.unfreeze.0"


def test_an_entry_that_names_no_frozen_parameter_is_refused():
    entries = [UnfreezeConfig(step=3, parameters="towr.*")]
    with pytest.raises(ConfigError, match="train.unfreeze.0.parameters = 'towr") as error:
        unfreeze(nn.Linear(2, 2).requires_grad_(False), entries, 0)
    assert "weight, bias" in str(error.value)
    with pytest.raises(ValueError, match="is a regular expression"):
        UnfreezeConfig(step=0, parameters="(")
