import copy

import pytest
import torch

from model.lora import add_adapters, merge_adapters
from tests.unit.model.tiny import tiny_batch, tiny_flamingo

ATTENTION = r"gated_blocks\.\d+\.attention\.to_(q|kv|out)"
LANGUAGE = r"language\..*(q_proj|v_proj)"


def logits(model):
    with torch.no_grad():
        return model.eval()(**tiny_batch(), with_logits=True).logits


def opened():
    model = tiny_flamingo()
    for block in model.gated_blocks:
        block.attn_gate.data.fill_(1.0)
    return model


def add(model, targets, **settings):
    settings = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "seed": 1} | settings
    return add_adapters(model, targets, **settings)


@pytest.mark.parametrize("targets", [ATTENTION, LANGUAGE, f"{ATTENTION}|{LANGUAGE}"])
def test_adapters_begin_as_nothing_and_are_all_that_is_trained(targets):
    model = opened()
    before, batch = logits(model), tiny_batch()
    names = add(model, targets)
    assert torch.equal(logits(model), before)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{n}.lora_{part}.default.weight" for n in names for part in "AB"}
    model.train()(**batch).loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name


def test_merged_weights_give_what_the_adapters_gave():
    model = opened()
    names = {n for n, _ in model.named_parameters()}
    plain = logits(model)
    add(model, f"{ATTENTION}|{LANGUAGE}")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    with_adapters = logits(model)
    merge_adapters(model)
    assert {n for n, _ in model.named_parameters()} == names
    finite = torch.isfinite(with_adapters)
    merged = logits(model)
    torch.testing.assert_close(merged[finite], with_adapters[finite], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged[finite], plain[finite], atol=1e-3)


def test_adapters_depend_on_their_seed_alone():
    first, second = opened(), opened()
    torch.manual_seed(1)
    add(first, ATTENTION)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    add(second, ATTENTION)
    assert torch.equal(torch.get_rng_state(), state)
    own = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        if "lora_" in name:
            assert torch.equal(parameter, own[name])
    assert copy.deepcopy(first) is not first


@pytest.mark.parametrize(
    ("targets", "rule"),
    [
        ("nothing", "matches no linear layer; some of their names"),
        ("(", "is no regular expression"),
    ],
)
def test_an_expression_that_names_no_layer_is_refused(targets, rule):
    with pytest.raises(ValueError, match=rule):
        add(tiny_flamingo(), targets)
