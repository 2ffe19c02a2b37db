"""Where the model looks: attention of words over the patches of their images.

Two attentions lie on the way from a word to a patch, and both are followed:

    word over latents      mean over heads, and over blocks by how far the gate of each is open
    latents over patches   through the layers of the resampler, R <- (R + W_patches + W_latents R) / 2

where W are the weights of a layer, mean over heads, R starts at 0, and the half is the residual connection;
rows of R are normalised at the end, since what a latent has of its own comes from no patch. A heuristic, as all
of this kind: it follows weights, not what values and feed-forwards make of them. It costs nothing unless asked.

Source: attention rollout (arXiv:2005.00928), for the resampler.
Shape legend: B rows, T tokens, M media slots, L latents, N media, P patches of all F frames of a medium, h * w
patches of a frame, K gated blocks.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.cross_attention import MaskedCrossAttention
from model.flamingo import Flamingo
from model.media import Media
from model.resampler import PerceiverAttention


@dataclass(frozen=True)
class AttentionMaps:
    """Shares of the images' patches in what each token looks at.

    Attributes:
        blocks: fp32 ``[K, B, T, M, F, h, w]`` on the host, one gated block after another. Those of a token
            sum to 1 over the images that it sees, and are 0 where it sees none. The token that says a word
            is the one before it.
        openness: fp32 ``[K]``, |tanh| of the gate in front of each block's attention, mean over its channels.
    """

    blocks: Tensor
    openness: Tensor

    @property
    def mean(self) -> Tensor:
        """``[B, T, M, F, h, w]``, over the blocks by how far each is open; evenly while all are shut."""
        total = self.openness.sum()
        even = torch.full_like(self.openness, 1 / len(self.openness))
        return torch.tensordot(self.openness / total if total > 0 else even, self.blocks, dims=1)


@torch.no_grad()
def attention_maps(
    model: Flamingo, media: Media, input_ids: Tensor, attention_mask: Tensor
) -> AttentionMaps:
    """Run the model once over texts, and watch both attentions; on one rank alone if need be.

    Args:
        model: its media all of one kind, its weights whole on this rank.
        media: as in `Flamingo.forward`.
        input_ids: long ``[B, T]``, prompts with what was said, padded on either side.
        attention_mask: bool ``[B, T]``.

    Raises:
        ValueError: the model's media are of several kinds, or patches of its tower have no grid.
    """
    if len(model.media_encoders) != 1:
        raise ValueError("attention maps are of models with one kind of media")
    (encoder,) = model.media_encoders.values()
    side = _grid_side(encoder.tower.num_patches)
    over_latents: list[Tensor] = []
    over_patches: list[Tensor] = []
    was_training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            for block in model.gated_blocks:
                stack.enter_context(_watched(block.attention, _text_weights, over_latents))
            for layer in encoder.resampler.layers:
                stack.enter_context(_watched(layer.attention, _latent_weights, over_patches))
            model.hidden_states(media, input_ids, attention_mask)
    finally:
        model.train(was_training)
    own_BMLP = _follow(over_patches)[media.slots.clamp(min=0)]
    words_KBTML = torch.stack(over_latents).unflatten(-1, (media.slots.shape[1], -1))
    maps = torch.einsum("kbtml,bmlp->kbtmp", words_KBTML, own_BMLP).float().cpu()
    gates = [torch.tanh(block.attn_gate.float()).abs().mean() for block in model.gated_blocks]
    return AttentionMaps(maps.unflatten(-1, (-1, side, side)), torch.stack(gates).cpu())


def _grid_side(num_patches: int) -> int:
    """Patches of a frame along one side: towers take square images and drop class and register tokens."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(
            f"the tower's {num_patches} patches are no square grid, nothing to draw on"
        )
    return side


@contextmanager
def _watched(module: nn.Module, compute, found: list[Tensor]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda m, args: found.append(compute(m, *args)))
    try:
        yield
    finally:
        handle.remove()


def _text_weights(
    attention: MaskedCrossAttention,
    text_BTH: Tensor,
    keys_values: tuple[Tensor, Tensor],
    visible_BTM: Tensor,
) -> Tensor:
    """``[B, T, M * L]``, zeros for a token that sees nothing."""
    key = keys_values[0]
    query = attention.to_q(attention.norm(text_BTH))
    query = attention.q_norm(query.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
    num_latents = key.shape[2] // visible_BTM.shape[2]
    seen_BTX = visible_BTM.repeat_interleave(num_latents, dim=-1)
    weights = _softmax(query, key, seen_BTX.unsqueeze(1))
    return weights.nan_to_num(0.0)


def _latent_weights(
    attention: PerceiverAttention,
    media_NRD: Tensor,
    latents_NLD: Tensor,
    mask_NX: Tensor | None = None,
) -> Tensor:
    """``[N, L, P + L]``."""
    media, latents = attention.norm_media(media_NRD), attention.norm_latents(latents_NLD)
    query = attention.to_q(latents)
    key, _ = attention.to_kv(torch.cat([media, latents], dim=1)).chunk(2, dim=-1)
    query, key = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in (query, key))
    seen = None if mask_NX is None else mask_NX[:, None, None]
    return _softmax(attention.q_norm(query), attention.k_norm(key), seen)


def _softmax(query: Tensor, key: Tensor, seen: Tensor | None) -> Tensor:
    """Mean over heads of the attention weights; NaN where nothing is seen."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(dtype) @ key.to(dtype).transpose(-1, -2) / query.shape[-1] ** 0.5
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1).mean(1)


def _follow(layers: list[Tensor]) -> Tensor:
    """Shares ``[N, L, P]`` of the patches in each latent."""
    num_latents = layers[0].shape[1]
    rollout = layers[0].new_zeros(*layers[0].shape[:2], layers[0].shape[2] - num_latents)
    for weights in layers:
        over_patches, over_latents = weights[..., :-num_latents], weights[..., -num_latents:]
        rollout = (rollout + over_patches + over_latents @ rollout) / 2
    return rollout / rollout.sum(-1, keepdim=True)
