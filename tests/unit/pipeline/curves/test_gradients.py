import random

import pytest

from pipeline.curves.gradients import OTHER, part_norms, part_of

NAMES = {
    "media_encoders.image.resampler.layers.0.attention.to_q.weight": "resampler",
    "media_encoders.image.resampler.latents": "resampler",
    "media_encoders.image.tower.model.encoder.layer.0.weight": "vision",
    "gated_blocks.11.attn_gate": "gates",
    "gated_blocks.0.ff_gate": "gates",
    "gated_blocks.0.attention.norm.bias": "cross_attention",
    "gated_blocks.0.feed_forward_norm.weight": "feed_forward",
    "gated_blocks.0.feed_forward.up_proj.weight": "feed_forward",
    "gated_blocks.3.feed_forward.routed.gate.weight": "routers",
    "gated_blocks.3.feed_forward.routed.experts.down_proj": "experts",
    "new_tokens.weight": "new_tokens",
    "contrastive.text.weight": "contrastive",
    "language.model.layers.1.mlp.up_proj.weight": "language",
    "gated_blocks.0.attention.to_q.lora_A.default.weight": "lora",
    "something.else": OTHER,
}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_its_part(name):
    assert part_of(name) == NAMES[name]


def test_the_squares_of_the_parts_sum_to_that_of_the_whole():
    sums = [random.random() for _ in range(4)]
    norms = part_norms(list("abcd"), sums, 3.7)
    assert sum(n**2 for n in norms.values()) == pytest.approx(3.7**2)
    assert norms["grad_norm/b"] / norms["grad_norm/a"] == pytest.approx((sums[1] / sums[0]) ** 0.5)


def test_a_gradient_of_zero_has_parts_of_zero():
    assert part_norms(["a", "b"], [0.0, 0.0], 0.0) == {"grad_norm/a": 0.0, "grad_norm/b": 0.0}
