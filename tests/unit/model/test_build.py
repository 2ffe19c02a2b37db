import subprocess
import sys

import pytest
import torch
from pydantic import BaseModel

import model.config as config_module
from model.build import build_flamingo, describe_parameters, frozen_identity
from model.config import ModelConfig
from model.experts import DenseFeedForward, ExpertFeedForward
from tests.unit.model.tiny import IMAGE, tiny_flamingo, tiny_language, tiny_vit


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
    return build_flamingo(config, image_token_id=IMAGE, seed=seed)


def test_trained_parts_follow_from_the_seed_and_leave_the_random_state_alone(towers):
    state = torch.random.get_rng_state()
    first, second, other = build(towers), build(towers), build(towers, seed=1)
    assert torch.equal(first.resampler.latents, second.resampler.latents)
    assert not torch.equal(first.resampler.latents, other.resampler.latents)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_experts_stand_in_the_blocks_that_the_config_names(towers):
    model = build(towers, experts={"num_experts": 2, "every": 2})
    kinds = [type(block.feed_forward) for block in model.gated_blocks]
    assert kinds == [DenseFeedForward, ExpertFeedForward, DenseFeedForward]
    experts = model.gated_blocks[1].feed_forward
    assert experts.gate.weight.shape == (2, 32)
    assert experts.experts.gate_up_proj.shape == (2, 128, 32)
    assert experts.experts.down_proj.shape == (2, 32, 64)


def test_parameters_are_counted_by_part():
    model = tiny_flamingo()
    counts = describe_parameters(model)
    assert counts["vision"]["trainable"] == counts["language"]["trainable"] == 0
    assert counts["image_token"] == {"trainable": 32, "frozen": 0}
    assert counts["resampler"]["frozen"] == counts["gated_blocks"]["frozen"] == 0
    assert sum(counts["total"].values()) == sum(p.numel() for p in model.parameters())


def test_the_identity_changes_with_the_weights(towers, tmp_path):
    identity = frozen_identity(str(towers / "vision"))
    assert identity == frozen_identity(str(towers / "vision"))
    tiny_vit().save_pretrained(tmp_path)
    assert frozen_identity(str(tmp_path)) != identity


def test_a_folder_without_weights_has_no_identity(tmp_path):
    with pytest.raises(ValueError, match="no weight file"):
        frozen_identity(str(tmp_path))


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
