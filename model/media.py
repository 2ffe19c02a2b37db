"""What a batch shows, and how it becomes latents: the only part that knows one kind of media from another.

The gated blocks see latents and a mask. A sound encoder joins as one more `MediaEncoder` with a token of
its own; its resampler brings the latents to the common number and width.
Shape legend: N media of a kind, F frames, P patches, D width of the latents, L latents, B rows, M slots.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.resampler import PerceiverResampler


@dataclass(frozen=True)
class MediaInput:
    """Media of one kind, one after another, whatever rows they belong to.

    Attributes:
        data: what the tower takes, ``[N, F, ...]``: normalised pixels ``[N, F, 3, S, S]``, F = 1 for
            a picture. None when features are given.
        features: the tower's features ``[N, F, P, width]``, from a cache, in place of data.
        frame_mask: bool ``[N, F]``, False for padded frames; None when there are none.
    """

    data: Tensor | None = None
    features: Tensor | None = None
    frame_mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse both or none."""
        if (self.data is None) == (self.features is None):
            raise ValueError("media are given either as data or as features of their tower")

    def to(self, device: torch.device, dtype: torch.dtype) -> "MediaInput":
        """Move to a device, and floats to a dtype."""
        return MediaInput(
            *(t if t is None else t.to(device, dtype) for t in (self.data, self.features)),
            self.frame_mask if self.frame_mask is None else self.frame_mask.to(device),
        )


@dataclass(frozen=True)
class Media:
    """All media of a batch.

    Attributes:
        slots: long ``[B, M]``, M >= 1: the medium in each slot of a row, in the order of the row's
            media tokens, counted through `inputs` kind by kind in the model's order; -1 for none.
        inputs: kind to its media. A kind without media is left out.
    """

    slots: Tensor
    inputs: dict[str, MediaInput] = field(default_factory=dict)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Media":
        """Move to a device, and floats to a dtype."""
        inputs = {kind: media.to(device, dtype) for kind, media in self.inputs.items()}
        return Media(self.slots.to(device), inputs)


class MediaEncoder(nn.Module):
    """A frozen tower and the resampler behind it.

    Args:
        tower: ``[X, *input_shape]`` to features ``[X, P, width]`` without gradient, with attributes
            `input_shape` (of one frame), `num_patches` and `width`; `model.vision_encoder.VisionEncoder`.
        resampler: features to latents.
    """

    def __init__(self, tower: nn.Module, resampler: PerceiverResampler) -> None:
        super().__init__()
        self.tower = tower
        self.resampler = resampler

    def encode(self, data: Tensor) -> Tensor:
        """Frames ``[N, F, ...]`` to features ``[N, F, P, width]``; what a cache would hold."""
        return self.tower(data.flatten(0, 1)).unflatten(0, data.shape[:2])

    def forward(self, media: MediaInput | None) -> Tensor:
        """Return latents ``[N, L, D]``; of one blank medium when there is none.

        A rank without media must run the same modules as the others: ZeRO gathers and averages
        parameters by the order in which they are used.
        """
        if media is None:
            parameter = next(self.parameters())
            blank = torch.zeros(1, 1, *self.tower.input_shape, device=parameter.device)
            media = MediaInput(data=blank)
        features = self.encode(media.data) if media.features is None else media.features
        return self.resampler(features.to(self.resampler.latents.dtype), media.frame_mask)


def place_latents(latents_XLD: Tensor, slots_BM: Tensor) -> Tensor:
    """Latents of each slot, ``[B, M, L, D]``; empty slots hold those of medium 0, for a mask to hide."""
    return latents_XLD[slots_BM.clamp(min=0)]


def media_mask(
    is_media_BT: Tensor,
    slots_BM: Tensor,
    *,
    attend: str = "latest",
    seen_B: Tensor | None = None,
    documents_BT: Tensor | None = None,
) -> Tensor:
    """Which slots each text token may attend to.

    Args:
        is_media_BT: bool, True at a media token.
        slots_BM: as in `Media`.
        attend: ``latest``, only the last medium at or before the token; ``all_previous``, every one.
        seen_B: media tokens of each row before these tokens, when a row comes in pieces.
        documents_BT: long, which document of its row a token belongs to, when a row has several; a
            token sees media of its own document only.

    Returns:
        bool ``[B, T, M]``; a token before the first medium, of its document, sees none.

    Raises:
        ValueError: a row has more media tokens than media; attending on would read a stranger's.

    Source: Flamingo (arXiv:2204.14198) section 2.3. open_flamingo's ``only_attend_immediate_media``
        and its opposite; it attends uniformly to all media where we raise or show nothing.
    """
    count_BT = is_media_BT.cumsum(1)
    if seen_B is not None:
        count_BT = count_BT + seen_B.unsqueeze(1)
    if not (count_BT.is_meta or torch.compiler.is_compiling()) and count_BT.numel():
        short = count_BT[:, -1] > (slots_BM >= 0).sum(1)
        if bool(short.any()):
            row = int(short.nonzero()[0, 0])
            raise ValueError(
                f"row {row} has {int(count_BT[row, -1])} media tokens but "
                f"{int((slots_BM[row] >= 0).sum())} media; give one medium for each token"
            )
    slot_M = torch.arange(1, slots_BM.shape[1] + 1, device=is_media_BT.device)
    count_BT1 = count_BT.unsqueeze(-1)
    shown = count_BT1 == slot_M if attend == "latest" else count_BT1 >= slot_M
    visible = shown & (slots_BM >= 0).unsqueeze(1)
    if documents_BT is not None:
        # The m-th media token of the row stands in the document that slot m belongs to.
        owner_BM = torch.full_like(slots_BM, -1)
        row, token = is_media_BT.nonzero(as_tuple=True)
        owner_BM[row, count_BT[row, token] - 1] = documents_BT[row, token]
        visible = visible & (owner_BM.unsqueeze(1) == documents_BT.unsqueeze(-1))
    return visible
