"""Two small towers trained together on image-text pairs; the image tower then serves Flamingo.

Shape legend: B batch, S image side, P patches, T text tokens, D embedding width.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.batch_norm import keep_statistics
from model.config import TowerConfig
from model.contrastive_loss import PairLoss

PIXEL_MEAN = (0.5, 0.5, 0.5)
PIXEL_STD = (0.5, 0.5, 0.5)


@dataclass
class ContrastiveOutput:
    """What one forward gives.

    Attributes:
        loss: of the batch joined over ranks, see `model.contrastive_loss.PairLoss`.
        accuracy: fraction of images whose own text is the nearest, and of texts likewise.
    """

    loss: Tensor
    accuracy: Tensor


class TextTower(nn.Module):
    """A small bidirectional transformer; the mean over real tokens is the text's feature."""

    def __init__(self, *, width: int, layers: int, heads: int, vocab_size: int, max_tokens: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(max_tokens, width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        # nn.TransformerEncoder copies its first layer: draw the others anew.
        for copied in self.encoder.layers[1:]:
            for module in copied.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
                elif isinstance(module, nn.MultiheadAttention):
                    module._reset_parameters()
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return ``[B, width]``.

        Raises:
            ValueError: the text is longer than the position table.
        """
        T = input_ids.shape[1]
        if len(self.positions) < T:
            raise ValueError(f"{T} text tokens, but max_text_tokens = {len(self.positions)}")
        mask = attention_mask.bool()
        hidden = self.embedding(input_ids) + self.positions[:T]
        hidden = self.norm(self.encoder(hidden, src_key_padding_mask=~mask))
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def build_vision(config: TowerConfig) -> nn.Module:
    """Build the image tower with fresh weights from the global random state."""
    from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

    width, layers = config.vision_width, config.vision_layers
    if config.vision_kind == "resnet":
        # Two stages behind a stem of stride 4, the second of stride 2: patches of 8 pixels.
        resnet = ResNetConfig(
            embedding_size=width // 4,
            hidden_sizes=[width // 2, width],
            depths=[(layers + 1) // 2, max(1, layers // 2)],
            layer_type="basic",
        )
        return keep_statistics(ResNetModel(resnet))
    return ViTModel(
        ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=config.vision_heads,
        ),
        add_pooling_layer=False,
    )


class ContrastiveTowers(nn.Module):
    """Image tower, text tower and a learnt temperature.

    Args:
        config: sizes of the towers.
        vocab_size: rows of the text embedding.
        form: of the loss, ``info_nce`` or ``sigmoid``.

    Source: CLIP (arXiv:2103.00020) figure 3; the image feature is the mean of the patches and not a
        class token, since Flamingo reads the patches.
    """

    def __init__(self, config: TowerConfig, *, vocab_size: int, form: str = "info_nce") -> None:
        super().__init__()
        self.vision = build_vision(config)
        self.text = TextTower(
            width=config.text_width,
            layers=config.text_layers,
            heads=config.vision_heads,
            vocab_size=vocab_size,
            max_tokens=config.max_text_tokens,
        )
        self.image_projection = nn.Linear(config.vision_width, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.embed_dim, bias=False)
        self.pairs = PairLoss(form)
        self.image_size = config.image_size

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed normalised images ``[B, 3, S, S]`` to unit vectors ``[B, D]``."""
        # Convolutions on a CPU and in half precision on a GPU are faster with the channels last.
        images = images.to(self.image_projection.weight.dtype, memory_format=torch.channels_last)
        features = self.vision(images).last_hidden_state
        # A ViT gives [B, 1 + P, width] with a class token in front, a ResNet [B, width, h, w].
        pooled = features[:, 1:].mean(1) if features.dim() == 3 else features.mean((2, 3))
        return F.normalize(self.image_projection(pooled).float(), dim=-1)

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed texts ``[B, T]`` to unit vectors ``[B, D]``."""
        return F.normalize(
            self.text_projection(self.text(input_ids, attention_mask)).float(), dim=-1
        )

    def forward(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> ContrastiveOutput:
        """Compute the loss over the batch of all ranks. Collective in training mode.

        The mean of the gradients over ranks is the gradient of the joined batch.

        Args:
            images: float ``[B, 3, S, S]``, normalised with `PIXEL_MEAN` and `PIXEL_STD`.
            input_ids: long ``[B, T]``.
            attention_mask: bool ``[B, T]``, False for padding.

        Raises:
            ValueError: the text is longer than the position table.
        """
        image_BD = self.embed_images(images)
        text_BD = self.embed_text(input_ids, attention_mask)
        return ContrastiveOutput(*self.pairs(image_BD, text_BD, across_ranks=self.training))

    def save_vision(self, folder: Path | str) -> None:
        """Write the image tower as a folder that `model.vision.load_vision` reads."""
        self.vision.save_pretrained(folder)
        preprocessor = {
            "image_mean": PIXEL_MEAN,
            "image_std": PIXEL_STD,
            "size": {"height": self.image_size, "width": self.image_size},
        }
        Path(folder, "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
