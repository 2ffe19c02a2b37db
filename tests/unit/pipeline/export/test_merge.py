"""Experts to one feed-forward: exact where they are alike, and measured where they are not."""

from pathlib import Path

import pytest
import torch

from data_prep.errors import ConfigError
from pipeline.export.export import export_model
from pipeline.export.merge import RoutingWeights, merge_experts, merge_measured
from tests.unit.pipeline.export.cases import opened

BLOCK = 1  # the one with experts


@pytest.fixture
def trained(trained_root):
    return opened(trained_root)


def test_equal_experts_are_merged_without_loss(trained):
    model = trained.objective.model
    mixture = model.gated_blocks[BLOCK].feed_forward
    for stacked in (mixture.routed.experts.gate_up_proj, mixture.routed.experts.down_proj):
        stacked.data.copy_(stacked.data[:1].expand_as(stacked))
    hidden = torch.randn(2, 5, stacked.shape[1])
    before = mixture(hidden)
    assert merge_experts(model, {BLOCK: [0.1, 0.2, 0.3, 0.4]}) == [BLOCK]
    torch.testing.assert_close(model.gated_blocks[BLOCK].feed_forward(hidden), before)


def test_where_one_expert_is_chosen_its_probability_is_in_the_merge(trained):
    model = trained.objective.model
    mixture = model.gated_blocks[BLOCK].feed_forward
    mixture.routed.top_k = 1
    mixture.routed.gate.weight.data.zero_()  # every probability is a quarter
    for stacked in (mixture.routed.experts.gate_up_proj, mixture.routed.experts.down_proj):
        stacked.data.copy_(stacked.data[:1].expand_as(stacked))
    hidden = torch.randn(7, stacked.shape[1])
    routing = RoutingWeights()
    routing.add(BLOCK, mixture.routed.gate(hidden), 1)
    before = mixture(hidden.unsqueeze(0))
    merge_experts(model, routing.means())
    torch.testing.assert_close(model.gated_blocks[BLOCK].feed_forward(hidden.unsqueeze(0)), before)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_routing_weights_are_the_mean_of_what_outputs_are_multiplied_with(top_k):
    from model.router import choose_experts

    logits = torch.randn(40, 5)
    routing = RoutingWeights()
    for part in logits.split(15):
        routing.add(3, part, top_k)
    routes = choose_experts(logits.double(), top_k)
    want = torch.zeros(5, dtype=torch.float64)
    expert = torch.repeat_interleave(torch.arange(5), routes.counts_E)
    for token in range(40):
        for choice in range(top_k):
            place = routes.place_XK[token, choice]
            want[expert[place]] += routes.weights_XK[token, choice] / 40
    torch.testing.assert_close(torch.tensor(routing.means()[3], dtype=torch.float64), want)


def test_what_a_merge_costs_is_measured_on_captions_held_out(trained):
    told = merge_measured(trained, 16)
    assert told["blocks"] == [BLOCK] and told["samples"] == 16
    assert told["loss_before"] != told["loss_after"] and 1 < told["loss_after"] < 20
    assert told["loss_before"] == pytest.approx(held_out_loss(trained.config), rel=1e-5)


def held_out_loss(config):
    """Of the same captions one by one, by the model as it was, with its own forward."""
    from pipeline.evaluation.task import read_task
    from pipeline.prompts import encode_prompts

    trained = opened(Path(config.root))
    objective, sums, count = trained.objective, 0.0, 0
    section = config.evaluation.model_copy(update={"max_samples": 16})
    for record in read_task(config.model_copy(update={"evaluation": section})).records.items:
        encoded = encode_prompts(objective.text, objective.image, [[record.image.open()]])
        text = objective.text.tokenizer(record.texts[0], add_special_tokens=False)["input_ids"]
        new = torch.tensor([[*text, *objective.text.end_ids]])
        media, prompt, _ = encoded.to(torch.device("cpu"), torch.float32)
        ids = torch.cat([prompt, new], dim=1)
        labels = torch.cat([torch.full_like(prompt, -100), new], dim=1)
        with torch.no_grad():
            output = objective.model(media, ids, torch.ones_like(ids), labels)
        sums, count = sums + output.loss_sum.item(), count + output.num_tokens.item()
    return sums / count


def test_without_experts_there_is_nothing_to_merge(trained, tmp_path):
    merge_experts(trained.objective.model, {BLOCK: [0.25] * 4})
    with pytest.raises(ConfigError, match="(?s)--experts.*is for a model with experts"):
        export_model(trained, tmp_path / "out", experts="merge")


def test_without_captions_held_out_a_merge_is_refused(trained):
    data = trained.config.data.model_copy(update={"held_out": None, "held_out_fraction": 0.0})
    trained.config = trained.config.model_copy(update={"data": data})
    with pytest.raises(ConfigError, match="(?s)data.held_out.*holds captions out of training"):
        merge_measured(trained, 16)
