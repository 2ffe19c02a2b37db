"""Gated cross-attention from text to media.

Shape legend: B batch, T text tokens, M media slots, L latents each, H language width, D width of the
latents, N heads, K head width, X = M * L.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.initial import unit_logits_
from model.norm import build_norm


class MaskedCrossAttention(nn.Module):
    """Text attends to the latents of the media that its mask shows.

    Args:
        text_width: H.
        media_width: D.
        num_heads: N.
        head_dim: K.
        norm: of the text, ``layer_norm`` or ``rms_norm``; the latents are not normalised again.
        qk_norm: normalise queries and keys per head.

    Source: open_flamingo ``MaskedCrossAttention`` (LayerNorm, no q/k norm) and IDEFICS
        ``IdeficsGatedCrossAttentionLayer`` (RMS norms, q/k norm); no bias in either. A token that
        sees nothing gets exactly 0 for any reason, not only before the first image.
    """

    def __init__(
        self,
        text_width: int,
        media_width: int,
        *,
        num_heads: int,
        head_dim: int,
        norm: str = "layer_norm",
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.norm = build_norm(norm, text_width)
        self.to_q = nn.Linear(text_width, inner, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, text_width, bias=False)
        self.q_norm = build_norm(norm, head_dim) if qk_norm else nn.Identity()
        self.k_norm = build_norm(norm, head_dim) if qk_norm else nn.Identity()
        unit_logits_(self.to_q, self.to_kv)

    def keys_values(self, media_BMLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, N, X, K]`` of latents; the same for every token that is generated."""
        key, value = self.to_kv(media_BMLD.flatten(1, 2)).chunk(2, dim=-1)
        key, value = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (key, value))
        return self.k_norm(key), value

    def forward(
        self, text_BTH: Tensor, keys_values: tuple[Tensor, Tensor], visible_BTM: Tensor
    ) -> Tensor:
        """Return the update of the text, ``[B, T, H]``.

        Args:
            text_BTH: hidden states.
            keys_values: of `keys_values`; what those of hidden slots hold does not matter.
            visible_BTM: bool, False for empty slots.
        """
        key, value = keys_values
        query = self.to_q(self.norm(text_BTH)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        sees_BT1 = visible_BTM.any(dim=-1, keepdim=True)
        # A row without any key is NaN in softmax and in its gradient: such rows look at everything
        # and are zeroed afterwards.
        num_latents = key.shape[2] // visible_BTM.shape[2]
        mask_BTX = (visible_BTM | ~sees_BT1).repeat_interleave(num_latents, dim=-1)
        attended_BNTK = F.scaled_dot_product_attention(
            self.q_norm(query), key, value, attn_mask=mask_BTX.unsqueeze(1)
        )
        update_BTH = self.to_out(attended_BNTK.transpose(1, 2).flatten(2))
        return update_BTH.masked_fill(~sees_BT1, 0.0)


class GatedCrossAttentionBlock(nn.Module):
    """Cross-attention and feed-forward, each behind a tanh gate.

    Args:
        attention: the cross-attention, which normalises its own input.
        feed_forward: ``[B, T, H]`` to ``[B, T, H]``; dense, or a mixture of experts, which also takes
            the flat indices of the tokens that are no padding.
        text_width: H.
        norm: before the feed-forward.
        gate: one ``scalar`` per branch, or a ``vector`` with one value per channel.
        gate_init: first value of the gates, before the tanh; at 0 the block changes nothing.

    Source: Flamingo (arXiv:2204.14198) section 2.2 and figure 4; IDEFICS ``alpha_type`` for vectors.
    """

    def __init__(
        self,
        attention: MaskedCrossAttention,
        feed_forward: nn.Module,
        *,
        text_width: int,
        norm: str = "layer_norm",
        gate: str = "scalar",
        gate_init: float = 0.0,
    ) -> None:
        super().__init__()
        size = (1,) if gate == "scalar" else (text_width,)
        self.attention = attention
        self.attn_gate = nn.Parameter(torch.full(size, gate_init))
        self.feed_forward_norm = build_norm(norm, text_width)
        self.feed_forward = feed_forward
        self.ff_gate = nn.Parameter(torch.full(size, gate_init))

    def forward(
        self,
        text_BTH: Tensor,
        media: Tensor | tuple[Tensor, Tensor],
        visible_BTM: Tensor,
        real_tokens: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states ``[B, T, H]``, in the dtype they came in.

        Args:
            text_BTH: hidden states.
            media: latents ``[B, M, L, D]``, or their keys and values.
            visible_BTM: bool, which slots each token sees.
            real_tokens: long, flat indices of the tokens that are no padding; None when all are.
        """
        hidden = text_BTH
        if torch.is_tensor(media):
            media = self.attention.keys_values(media)
        update = self.attention(hidden, media, visible_BTM)
        hidden = hidden + torch.tanh(self.attn_gate) * update
        normed = self.feed_forward_norm(hidden)
        if hasattr(self.feed_forward, "routed"):
            update = self.feed_forward(normed, real_tokens)
        else:
            update = self.feed_forward(normed)
        return hidden + torch.tanh(self.ff_gate) * update
