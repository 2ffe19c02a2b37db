"""What a rank gets: the tensors of a micro-batch, and how samples become them.

Letters: B rows, N images, F frames, M media slots, T tokens, S pixels of a side, P patches.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.media import Media, MediaInput
from pipeline.data.image import ImageFormat
from pipeline.data.packing import pack_rows
from pipeline.data.text import IGNORE, Encoded


@dataclass(frozen=True)
class Sample:
    """One sample, ready to be laid out.

    Attributes:
        key: where it came from, "source/key in the tar".
        text: its texts, to be read.
        encoded: tokens and labels.
        pixels: uint8 ``[3, S, S]`` for each image token.
        position: in the global order; -1 for what is not in it.
        features: float16 ``[P, width]`` for each image token, from a cache, in place of pixels.
    """

    key: str
    text: str
    encoded: Encoded
    pixels: list[np.ndarray]
    position: int = -1
    features: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Replacement:
    """A sample that could not be used, and where another stands in for it."""

    position: int
    key: str
    reason: str
    counted: bool


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        media: images and int64 slots (B, M) that say which of them stands where in a row, -1 for
            none. Images are uint8 (N, F, 3, S, S) until `to`, which normalises them for the encoder,
            or features of the encoder, float16 (N, F, P, width), where they come from a cache; there
            is no padding among them. Text of one sample never sees an image of another.
        input_ids: int64 (B, T), padded on the right with the pad token.
        attention_mask: bool (B, T), False on padding.
        labels: int64 (B, T), the token itself where it is predicted, `IGNORE` elsewhere.
        documents: int64 (B, T), number of the sample within its row, -1 on padding; None where
            every row is one sample. Samples of one row do not see each other.
        samples: int64 (B, T), number of each token's sample as in `keys`, -1 on padding; stays on
            the host.
        keys: where each sample came from, "source/key", in the order of the global order's slice.
        texts: the captions.
        positions: of each sample in the global order.
        replaced: samples that could not be used.
        mean, std: of the encoder, per channel of values from 0 to 1.
        black: float16 (P, width), the features of a black image; None where images are pixels.
    """

    media: Media
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    documents: Tensor | None
    samples: Tensor
    keys: list[str]
    texts: list[str]
    positions: list[int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    replaced: list[Replacement]
    black: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding."""
        return int((self.samples >= 0).sum())

    @property
    def num_images(self) -> int:
        """Images that stand in a row."""
        return int((self.media.slots >= 0).sum())

    @property
    def num_target_tokens(self) -> int:
        """Tokens that carry loss, after the shift by one."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    def token_sources(self, names: list[str]) -> Tensor:
        """int64 (B, T), place in `names` of each token's source; ``len(names)`` where it is not there."""
        places = {name: place for place, name in enumerate(names)}
        of_sample = [places.get(key.partition("/")[0], len(names)) for key in self.keys]
        return torch.tensor([*of_sample, len(names)])[self.samples]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """Move to a device; images become normalised floats there, a quarter of the bytes moved."""
        names = ("input_ids", "attention_mask", "labels", "documents")
        tensors = {name: getattr(self, name) for name in names}
        moved = {
            name: None if tensor is None else tensor.to(device, non_blocking=True)
            for name, tensor in tensors.items()
        }
        inputs = {}
        for kind, media in self.media.inputs.items():
            if media.data is None:
                features = media.features.to(device, non_blocking=True).to(dtype)
                inputs[kind] = replace(media, features=features)
            else:
                pixels = media.data.to(device, non_blocking=True)
                inputs[kind] = replace(media, data=normalise(pixels, self.mean, self.std, dtype))
        media = Media(self.media.slots.to(device, non_blocking=True), inputs)
        return replace(self, media=media, **moved)

    def picture(self, row: int) -> Image.Image:
        """The first image of a row, as the encoder gets it, before `to`."""
        number = int(self.media.slots[row, 0])
        return Image.fromarray(self.media.inputs["image"].data[number, 0].permute(1, 2, 0).numpy())

    def zero_images(self) -> "Batch":
        """The control: the same rows, masks and texts with black pixels, or the features of such.

        Raises:
            ValueError: the images are normalised already, where 0 is no black.
        """
        inputs = {}
        for kind, media in self.media.inputs.items():
            if media.data is None:
                black = self.black.to(media.features.device, media.features.dtype)
                inputs[kind] = replace(media, features=black.expand_as(media.features))
                continue
            if media.data.is_floating_point():
                raise ValueError("make images black before they are normalised by `to`")
            inputs[kind] = replace(media, data=torch.zeros_like(media.data))
        return replace(self, media=replace(self.media, inputs=inputs))

    def pin_memory(self) -> "Batch":
        """Lay the tensors where a GPU fetches them without waiting; called by torch's loader."""
        pinned = {
            name: tensor.pin_memory()
            for name in ("input_ids", "attention_mask", "labels", "documents")
            if (tensor := getattr(self, name)) is not None
        }
        inputs = {}
        for kind, media in self.media.inputs.items():
            name = "features" if media.data is None else "data"
            inputs[kind] = replace(media, **{name: getattr(media, name).pin_memory()})
        return replace(self, media=Media(self.media.slots.pin_memory(), inputs), **pinned)


def normalise(
    pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> Tensor:
    """Pixels ``[..., 3, S, S]`` from 0 to 255 as an encoder takes them; floats are so already."""
    if pixels.is_floating_point():
        return pixels.to(dtype)
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (mean, std))
    # One product and one sum for each value: x / 255 / std - mean / std.
    return (pixels.float() * (1 / (255 * std)) - mean / std).to(dtype)


def collate(
    samples: list[Sample],
    image: ImageFormat | None,
    *,
    pad_id: int,
    pack_tokens: int | None = None,
    replaced: list[Replacement] | None = None,
    black: np.ndarray | None = None,
) -> Batch:
    """Samples to a batch.

    Args:
        samples: in the order of the global order's slice.
        image: that made their pixels; None where they have none.
        pad_id: token that fills rows.
        pack_tokens: longest row of several samples; None gives every sample a row.
        replaced: goes into the batch.
        black: float16 ``[P, width]``, features of a black image, where the samples hold features.
    """
    lengths = [len(sample.encoded.ids) for sample in samples]
    rows = [[i] for i in range(len(samples))]
    if pack_tokens is not None:
        rows = pack_rows(lengths, pack_tokens)
    width = max(sum(lengths[i] for i in row) for row in rows)
    slots_in_row = [sum(samples[i].encoded.num_images for i in row) for row in rows]
    input_ids = np.full((len(rows), width), pad_id)
    labels = np.full((len(rows), width), IGNORE)
    documents, numbers = (np.full((len(rows), width), -1) for _ in range(2))
    slots = np.full((len(rows), max(1, *slots_in_row)), -1)
    images: list[np.ndarray] = []
    for r, row in enumerate(rows):
        at = slot = 0
        for number, i in enumerate(row):
            encoded, end = samples[i].encoded, at + lengths[i]
            input_ids[r, at:end], labels[r, at:end] = encoded.ids, encoded.labels
            documents[r, at:end], numbers[r, at:end] = number, i
            slots[r, slot : slot + encoded.num_images] = range(
                len(images), len(images) + encoded.num_images
            )
            images += samples[i].pixels if black is None else samples[i].features
            at, slot = end, slot + encoded.num_images
    # A batch without any image still has one, black and in no slot: every rank runs the encoder.
    side = 1 if image is None else image.size
    blank = np.zeros((3, side, side), np.uint8) if black is None else black
    frames = torch.from_numpy(np.stack(images or [blank])).unsqueeze(1)
    shown = MediaInput(frames) if black is None else MediaInput(features=frames)
    documents_tensor = torch.from_numpy(documents)
    return Batch(
        media=Media(torch.from_numpy(slots), {"image": shown}),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=documents_tensor >= 0,
        labels=torch.from_numpy(labels),
        documents=None if pack_tokens is None else documents_tensor,
        samples=torch.from_numpy(numbers),
        keys=[sample.key for sample in samples],
        texts=[sample.text for sample in samples],
        positions=[sample.position for sample in samples],
        mean=(0.0, 0.0, 0.0) if image is None else image.mean,
        std=(1.0, 1.0, 1.0) if image is None else image.std,
        replaced=replaced or [],
        black=None if black is None else torch.from_numpy(black),
    )
