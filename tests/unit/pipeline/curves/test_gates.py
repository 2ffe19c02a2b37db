import math

import pytest
import torch

from pipeline.curves.gates import gate_values
from tests.unit.model.tiny import tiny_flamingo


def test_a_gate_is_told_as_its_tanh():
    model = tiny_flamingo()
    with torch.no_grad():
        model.gated_blocks[1].attn_gate.fill_(-0.5)
        model.gated_blocks[1].ff_gate.fill_(2.0)
    values = gate_values(model)
    assert len(values) == 2 * len(model.gated_blocks)
    assert values["gates/block_1/attention"] == pytest.approx(math.tanh(-0.5))
    assert values["gates/block_1/feed_forward"] == pytest.approx(math.tanh(2.0))


def test_a_gate_by_channel_is_told_as_the_mean_of_the_absolutes():
    model = tiny_flamingo()
    gate = torch.randn(6)
    model.gated_blocks[0].attn_gate = torch.nn.Parameter(gate)
    expected = sum(abs(math.tanh(g)) for g in gate.tolist()) / 6
    assert gate_values(model)["gates/block_0/attention"] == pytest.approx(expected, rel=1e-5)
