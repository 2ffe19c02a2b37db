"""Gated cross-attention from text to images, and the mask that says which image a token sees.

Shape legend: B batch, T text tokens, M media, L latents per image, H language width, D vision
width, N heads, K head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.initial import unit_logits_


def media_mask(is_media_BT: Tensor, num_media: int) -> Tensor:
    """Which media each text token may attend to.

    Args:
        is_media_BT: bool, True at an ``<image>`` token.
        num_media: M, media slots in the batch, padding included.

    Returns:
        bool ``[B, T, M]``; token t sees only the last image at or before t, and no image before the
        first one.

    Raises:
        ValueError: a row has more image tokens than ``num_media``; attending on would read padding.

    Source: Flamingo (arXiv:2204.14198) section 2.3; same rule as open_flamingo
        ``only_attend_immediate_media``, which attends to all images instead of raising.
    """
    media_time_BT = is_media_BT.cumsum(dim=1)
    most = int(media_time_BT[:, -1].max()) if media_time_BT.numel() else 0
    if most > num_media:
        raise ValueError(f"a row has {most} image tokens but only {num_media} media slots")
    return media_time_BT.unsqueeze(-1) == torch.arange(1, num_media + 1, device=is_media_BT.device)


class MaskedCrossAttention(nn.Module):
    """Text attends to the latents of the images that its mask shows.

    Args:
        text_width: H.
        media_width: D.
        num_heads: N.
        head_dim: K.

    Source: open_flamingo ``MaskedCrossAttention``: LayerNorm on the text only, no bias. A token
        that sees nothing gets exactly 0 for any reason, not only before the first image.
    """

    def __init__(self, text_width: int, media_width: int, *, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.norm = nn.LayerNorm(text_width)
        self.to_q = nn.Linear(text_width, inner, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, text_width, bias=False)
        unit_logits_(self.to_q, self.to_kv)

    def forward(self, text_BTH: Tensor, media_BMLD: Tensor, visible_BTM: Tensor) -> Tensor:
        """Return the update of the text, ``[B, T, H]``.

        Args:
            text_BTH: hidden states.
            media_BMLD: latents; what padded media hold does not matter.
            visible_BTM: bool, False for padded media.
        """
        query = self.to_q(self.norm(text_BTH))
        key, value = self.to_kv(media_BMLD.flatten(1, 2)).chunk(2, dim=-1)
        query, key, value = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value)
        )
        sees_BT1 = visible_BTM.any(dim=-1, keepdim=True)
        # A row without any key is NaN in softmax and in its gradient: such rows look at everything
        # and are zeroed afterwards.
        mask_BTX = (visible_BTM | ~sees_BT1).repeat_interleave(media_BMLD.shape[2], dim=-1)
        attended_BNTK = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_BTX.unsqueeze(1)
        )
        update_BTH = self.to_out(attended_BNTK.transpose(1, 2).flatten(2))
        return update_BTH.masked_fill(~sees_BT1, 0.0)


class GatedCrossAttentionBlock(nn.Module):
    """Cross-attention and feed-forward, each behind a tanh gate.

    Args:
        attention: the cross-attention, which normalises its own input.
        feed_forward: ``[B, T, H]`` to ``[B, T, H]``; dense or a mixture of experts.
        text_width: H.
        gate_init: first value of both gates, before the tanh; at 0 the block changes nothing.

    Source: Flamingo (arXiv:2204.14198) section 2.2 and figure 4.
    """

    def __init__(
        self,
        attention: MaskedCrossAttention,
        feed_forward: nn.Module,
        *,
        text_width: int,
        gate_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attn_gate = nn.Parameter(torch.full((1,), gate_init))
        self.feed_forward_norm = nn.LayerNorm(text_width)
        self.feed_forward = feed_forward
        self.ff_gate = nn.Parameter(torch.full((1,), gate_init))

    def forward(self, text_BTH: Tensor, media_BMLD: Tensor, visible_BTM: Tensor) -> Tensor:
        """Return the hidden states ``[B, T, H]``, in the dtype they came in."""
        hidden = text_BTH
        update = self.attention(hidden, media_BMLD, visible_BTM)
        hidden = hidden + torch.tanh(self.attn_gate) * update
        update = self.feed_forward(self.feed_forward_norm(hidden))
        return hidden + torch.tanh(self.ff_gate) * update
