"""The perceiver resampler: any number of patch features to a fixed number of latents per medium.

Shape legend: N media, F frames, P patches of a frame, W width of the features, D width of the latents,
L latents, R = F * P.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.feed_forward import DenseFeedForward
from model.initial import unit_logits_


class PerceiverAttention(nn.Module):
    """Latents attend to the features and to themselves.

    Source: Flamingo (arXiv:2204.14198) appendix A.1.1; open_flamingo ``PerceiverAttention``; IDEFICS
        for the normalised queries and keys.
    """

    def __init__(self, width: int, *, num_heads: int, head_dim: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.q_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        unit_logits_(self.to_q, self.to_kv)

    def forward(
        self, media_NRD: Tensor, latents_NLD: Tensor, mask_NX: Tensor | None = None
    ) -> Tensor:
        """Return the update of the latents, ``[N, L, D]``.

        Args:
            media_NRD: features.
            latents_NLD: the latents so far.
            mask_NX: bool ``[N, R + L]``, False for what is not to be seen.
        """
        media_NRD = self.norm_media(media_NRD)
        latents_NLD = self.norm_latents(latents_NLD)
        query = self.to_q(latents_NLD)
        key, value = self.to_kv(torch.cat([media_NRD, latents_NLD], dim=1)).chunk(2, dim=-1)
        query, key, value = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(
            self.q_norm(query),
            self.k_norm(key),
            value,
            attn_mask=None if mask_NX is None else mask_NX[:, None, None],
        )
        return self.to_out(attended.transpose(1, 2).flatten(2))


class ResamplerLayer(nn.Module):
    """Attention, then a feed-forward, each added to the latents."""

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        head_dim: int,
        ff_mult: float,
        feed_forward: str,
        qk_norm: bool,
    ) -> None:
        super().__init__()
        self.attention = PerceiverAttention(
            width, num_heads=num_heads, head_dim=head_dim, qk_norm=qk_norm
        )
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = DenseFeedForward(width, int(ff_mult * width), form=feed_forward)

    def forward(self, media_NRD: Tensor, latents_NLD: Tensor, mask_NX: Tensor | None) -> Tensor:
        """Return the latents ``[N, L, D]``."""
        latents_NLD = latents_NLD + self.attention(media_NRD, latents_NLD, mask_NX)
        return latents_NLD + self.feed_forward(self.feed_forward_norm(latents_NLD))


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
    # Named, since libraries that wrap some of torch's constructors choose a device of their own.
    device = torch.get_default_device()
    spread = torch.linspace(math.log(lowest), math.log(highest), width // 4, device=device).exp()
    angles = torch.arange(side, device=device).unsqueeze(1) * spread
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    row, column = line.repeat_interleave(side, dim=0), line.repeat(side, 1)
    return torch.cat([row, column], dim=1)


def frame_positions(embeddings_FD: Tensor, num_frames: int) -> Tensor:
    """Vectors of the frames, ``[num_frames, D]``: the first ones, or interpolated when there are more.

    Source: Flamingo (arXiv:2204.14198) section 3.1: trained on 8 frames, evaluated on 30 by linear
        interpolation; first and last frame keep their vectors.
    """
    if num_frames <= len(embeddings_FD):
        return embeddings_FD[:num_frames]
    return F.interpolate(
        embeddings_FD.T.unsqueeze(0), num_frames, mode="linear", align_corners=True
    )[0].T


class PerceiverResampler(nn.Module):
    """Resample every medium on its own.

    Args:
        width: D, of the latents.
        depth: layers.
        num_latents: L.
        num_heads: attention heads.
        head_dim: width of one.
        ff_mult: feed-forward width / D.
        feed_forward: activation, see `model.feed_forward`.
        qk_norm: normalise queries and keys per head.
        num_positions: P, patches per frame in a square grid, to add a trained vector to each; None to
            add nothing.
        max_frames: frames in training, to add a trained vector to each; None to add nothing.
        feature_width: W; the features are projected when it is not D.

    Raises:
        ValueError: positions for patches that are no square grid, or a width not divisible by 4.

    Source: open_flamingo ``PerceiverResampler``; IDEFICS for ``qk_norm``. Patch positions are ours: a
        convolutional grid holds no position, and Flamingo's own encoder was large enough to leak it.
        They start as sines and cosines of row and column (`sincos_positions`), in which "the left half"
        is one direction. Patches are normalised before positions are added, so that neither drowns the
        other whatever the encoder's scale.
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
        feed_forward: str = "gelu",
        qk_norm: bool = False,
        num_positions: int | None = None,
        max_frames: int | None = None,
        feature_width: int | None = None,
    ) -> None:
        super().__init__()
        feature_width = feature_width or width
        self.projection = (
            nn.Identity() if feature_width == width else nn.Linear(feature_width, width, bias=False)
        )
        self.positions = (
            None if num_positions is None else nn.Parameter(sincos_positions(num_positions, width))
        )
        self.frames = (
            None if max_frames is None else nn.Parameter(0.02 * torch.randn(max_frames, width))
        )
        self.latents = nn.Parameter(torch.randn(num_latents, width))
        self.layers = nn.ModuleList(
            ResamplerLayer(
                width,
                num_heads=num_heads,
                head_dim=head_dim,
                ff_mult=ff_mult,
                feed_forward=feed_forward,
                qk_norm=qk_norm,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features_NFPW: Tensor, frame_mask_NF: Tensor | None = None) -> Tensor:
        """Resample features ``[N, F, P, W]`` to latents ``[N, L, D]``.

        Args:
            features_NFPW: of the frames of each medium; F = 1 for a picture.
            frame_mask_NF: bool, False for padded frames, which are never seen.

        Raises:
            ValueError: P is not the number of positions.
        """
        N, num_frames, P = features_NFPW.shape[:3]
        features = self.projection(features_NFPW)
        if self.positions is not None:
            if len(self.positions) != P:
                raise ValueError(f"{P} patches, but positions for {len(self.positions)}")
            features = F.layer_norm(features, features.shape[-1:]) + self.positions
        if self.frames is not None:
            features = features + frame_positions(self.frames, num_frames).unsqueeze(1)
        mask_NX = None
        if frame_mask_NF is not None:
            seen_NR = frame_mask_NF.bool().repeat_interleave(P, dim=1)
            mask_NX = F.pad(seen_NR, (0, len(self.latents)), value=True)
        latents_NLD = self.latents.expand(N, -1, -1)
        for layer in self.layers:
            latents_NLD = layer(features.flatten(1, 2), latents_NLD, mask_NX)
        return self.norm(latents_NLD)
