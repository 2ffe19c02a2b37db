"""The frozen image encoder: normalised pixels to patch features, whatever model is inside.

Shape legend: N images, S image side, T tokens, P patches, D width.
"""

import math

import torch
from torch import Tensor, nn


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
        self.patch_size = patch_size
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

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: ``[N, 3, S, S]``, normalised with `mean` and `std`, any float dtype.

        Returns:
            ``[N, P, D]`` in the dtype of the backbone, without gradient unless part of it is trained.
        """
        # Convolutions on a CPU and in half precision on a GPU are faster with the channels last.
        dtype = _float_dtype(self.backbone)
        trained = any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
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
