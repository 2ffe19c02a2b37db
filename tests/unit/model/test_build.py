import subprocess
import sys

import pytest
import torch
from pydantic import BaseModel

import model.config as config_module
from model.build import build_flamingo, describe_parameters
from model.config import ModelConfig
from model.experts import MixtureFeedForward
from model.feed_forward import DenseFeedForward
from tests.unit.model.tiny import IDS, tiny_flamingo, tiny_language, tiny_vit


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    tiny_vit().save_pretrained(root / "vision")
    tiny_language().save_pretrained(root / "language")
    return root


def build(towers, seed=0, **sections):
    config = ModelConfig(
        vision={"path": str(towers / "vision")},
        language={"path": str(towers / "language")},
        **sections,
    )
    return build_flamingo(config, token_ids=IDS, seed=seed)


def latents(model):
    return model.media_encoders["image"].resampler.latents


def test_trained_parts_follow_from_the_seed_and_leave_the_random_state_alone(towers):
    state = torch.random.get_rng_state()
    first, second, other = build(towers), build(towers), build(towers, seed=1)
    assert torch.equal(latents(first), latents(second))
    assert not torch.equal(latents(first), latents(other))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_experts_stand_in_the_blocks_that_the_config_names(towers):
    model = build(towers, experts={"num_experts": 2, "every": 2})
    kinds = [type(block.feed_forward) for block in model.gated_blocks]
    assert kinds == [DenseFeedForward, MixtureFeedForward, DenseFeedForward]
    experts = model.gated_blocks[1].feed_forward.routed
    assert experts.gate.weight.shape == (2, 32)
    assert experts.experts.gate_up_proj.shape == (2, 128, 32)
    assert experts.experts.down_proj.shape == (2, 32, 64)


def test_parameters_are_counted_by_part():
    model = tiny_flamingo()
    counts = describe_parameters(model)
    assert counts["language"]["trainable"] == 0
    # Two input rows and, the head being untied, the output row of <|endofchunk|>.
    assert counts["new_tokens"] == {"trainable": 3 * 32, "frozen": 0}
    assert counts["gated_blocks"]["frozen"] == 0
    assert sum(counts["total"].values()) == sum(p.numel() for p in model.parameters())


def test_experts_without_a_gated_feed_forward_are_refused():
    with pytest.raises(ValueError, match="num_experts = 2 needs .*feed_forward = swiglu, not gelu"):
        ModelConfig(
            vision={"path": "-"},
            language={"path": "-"},
            cross_attention={"feed_forward": "gelu"},
            experts={"num_experts": 2},
        )


def test_every_config_field_says_what_it_is():
    sections = [
        value
        for value in vars(config_module).values()
        if isinstance(value, type) and issubclass(value, BaseModel)
    ]
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def test_the_config_imports_no_torch():
    code = "import sys, model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
