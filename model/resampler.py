"""The perceiver resampler: any number of patch features to a fixed number of latents per image.

Shape legend: B batch, M media, P patches, L latents, D vision width, N heads, K head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.initial import unit_logits_


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    """LayerNorm, then two bias-free layers with an exact GELU between them."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, hidden, bias=False),
        nn.GELU(),
        nn.Linear(hidden, width, bias=False),
    )


class PerceiverAttention(nn.Module):
    """Latents attend to the patches and to themselves.

    Source: Flamingo (arXiv:2204.14198) appendix A.1.1; open_flamingo ``PerceiverAttention``.
    """

    def __init__(self, width: int, *, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        unit_logits_(self.to_q, self.to_kv)

    def forward(self, media_XPD: Tensor, latents_XLD: Tensor) -> Tensor:
        """Return the update of the latents, ``[X, L, D]``; X is batch times media."""
        media_XPD = self.norm_media(media_XPD)
        latents_XLD = self.norm_latents(latents_XLD)
        query = self.to_q(latents_XLD)
        key, value = self.to_kv(torch.cat([media_XPD, latents_XLD], dim=1)).chunk(2, dim=-1)
        query, key, value = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value)
        )
        attended_XNLK = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(attended_XNLK.transpose(1, 2).flatten(2))


def sincos_positions(count: int, width: int) -> Tensor:
    """Position vectors of a square grid, row by row: ``[count, width]``, entries from -1 to 1.

    Half of the width tells the row, half the column, each as sines and cosines of width / 4
    frequencies spaced evenly in the logarithm, from half a turn across the grid to a quarter turn
    from one patch to the next.

    Raises:
        ValueError: count is no square, or width is not divisible by 4.

    Source: ViT-MAE (arXiv:2111.06377) `get_2d_sincos_pos_embed`, whose lowest frequencies, made for
        sentences of thousands of words, are constant over a grid of 7 or 14 patches.
    """
    side = math.isqrt(count)
    if side * side != count or width % 4:
        raise ValueError(
            f"patch positions want a square grid and a width divisible by 4, "
            f"not {count} patches of width {width}"
        )
    lowest, highest = math.pi / max(side, 2), math.pi / 2
    spread = torch.linspace(math.log(lowest), math.log(highest), width // 4).exp()
    angles = torch.arange(side).unsqueeze(1) * spread
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    row, column = line.repeat_interleave(side, dim=0), line.repeat(side, 1)
    return torch.cat([row, column], dim=1)


class PerceiverResampler(nn.Module):
    """Resample every image on its own.

    Args:
        width: D, of patches and latents alike.
        depth: layers.
        num_latents: L.
        num_heads: N.
        head_dim: K.
        ff_mult: feed-forward width / D.
        num_positions: P, patches per image in a square grid, to add a trained vector to each; None to
            add nothing.

    Raises:
        ValueError: positions for patches that are no square grid, or a width not divisible by 4.

    Source: open_flamingo ``PerceiverResampler`` without its (unused) frame and media embeddings.
        Patch positions are ours: a convolutional grid holds no position, and Flamingo's own
        encoder was large enough to leak it. They start as sines and cosines of row and column
        (`sincos_positions`), in which "the left half" is one direction. Patches are normalised before
        positions are added, so that neither drowns the other whatever the encoder's scale.
    """

    def __init__(
        self,
        width: int,
        *,
        depth: int,
        num_latents: int,
        num_heads: int,
        head_dim: int,
        ff_mult: float,
        num_positions: int | None = None,
    ) -> None:
        super().__init__()
        self.positions = (
            None if num_positions is None else nn.Parameter(sincos_positions(num_positions, width))
        )
        self.latents = nn.Parameter(torch.randn(num_latents, width))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": PerceiverAttention(width, num_heads=num_heads, head_dim=head_dim),
                    "feed_forward": feed_forward(width, int(ff_mult * width)),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """Resample patch features ``[B, M, P, D]`` to latents ``[B, M, L, D]``.

        Raises:
            ValueError: P is not the number of positions.
        """
        B, M = features.shape[:2]
        if self.positions is not None:
            if features.shape[2] != len(self.positions):
                raise ValueError(
                    f"{features.shape[2]} patches, but positions for {len(self.positions)}"
                )
            features = F.layer_norm(features, features.shape[-1:]) + self.positions
        media_XPD = features.flatten(0, 1)
        latents_XLD = self.latents.expand(B * M, -1, -1)
        for layer in self.layers:
            latents_XLD = latents_XLD + layer["attention"](media_XPD, latents_XLD)
            latents_XLD = latents_XLD + layer["feed_forward"](latents_XLD)
        return self.norm(latents_XLD).unflatten(0, (B, M))
