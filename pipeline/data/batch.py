"""What a rank gets: the tensors of a batch, and how pairs become them.

Letters: B rows, N images, F frames, M media slots, T tokens, S pixels of a side.
"""

import io
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.media import Media, MediaInput
from model.tokens import TokenIds
from pipeline.data.shards import RawSample

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        media: float32 images (N, F, 3, S, S), normalised for the encoder and without padding, and
            int64 slots (B, M) that say which of them stands where in a row, -1 for none.
        input_ids: int64 (B, T), padded on the right with the pad token.
        attention_mask: bool (B, T), False on padding.
        labels: int64 (B, T), the token itself where it is predicted, IGNORE on marks and padding.
        keys: where each sample came from, "source/row".
        texts: the captions.
    """

    media: Media
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    keys: list[str]
    texts: list[str]

    @property
    def num_target_tokens(self) -> int:
        """Tokens that carry loss, after the shift by one."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        moved = {
            name: getattr(self, name).to(device)
            for name in ("input_ids", "attention_mask", "labels")
        }
        media = self.media.to(device, dtype)
        return Batch(media, keys=self.keys, texts=self.texts, **moved)

    def zero_images(self) -> "Batch":
        """The control: the same rows, masks and texts with black pixels."""
        inputs = {
            kind: replace(m, data=torch.zeros_like(m.data)) for kind, m in self.media.inputs.items()
        }
        return replace(self, media=replace(self.media, inputs=inputs))


@dataclass(frozen=True)
class TextFormat:
    """How a caption becomes tokens: [<image>] begin caption end.

    Attributes:
        tokenizer: a transformers tokenizer.
        token_ids: of the new tokens, or None where the text stands alone.
        max_tokens: longest row, marks included; the caption is cut, the end mark is kept.
    """

    tokenizer: object
    token_ids: TokenIds | None
    max_tokens: int

    @property
    def begin_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if begin is None else begin

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def prompt(self) -> list[int]:
        """What stands before every caption; carries no loss."""
        marks = [] if self.token_ids is None else [self.token_ids.media["image"]]
        return [*marks, self.begin_id]

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, labels) of one caption."""
        room = self.max_tokens - len(self.prompt) - 1
        body = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        # A caption from the web may spell the marks; it must not ask for an image of its own.
        marks = () if self.token_ids is None else self.token_ids.ordered
        body = [i for i in body if i not in marks][:room]
        body = [*body, self.tokenizer.eos_token_id]
        return [*self.prompt, *body], [IGNORE] * len(self.prompt) + body

    def decode(self, ids: list[int]) -> str:
        """Text up to the first end mark."""
        end = self.tokenizer.eos_token_id
        ids = ids[: ids.index(end)] if end in ids else ids
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


@dataclass(frozen=True)
class ImageFormat:
    """How an encoded image becomes pixels: square of `size`, (value / 255 - mean) / std."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def decode(self, data: bytes) -> Tensor:
        """float32 (3, S, S)."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.float32) / 255.0
        pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def collate(samples: list[RawSample], text: TextFormat, image: ImageFormat) -> Batch:
    """Pairs -> Batch, one image a sample (M = F = 1)."""
    encoded = [text.encode(s.text) for s in samples]
    width = max(len(ids) for ids, _ in encoded)
    input_ids = torch.full((len(samples), width), text.pad_id)
    labels = torch.full((len(samples), width), IGNORE)
    attention_mask = torch.zeros(len(samples), width, dtype=torch.bool)
    for row, (ids, targets) in enumerate(encoded):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(ids)] = torch.tensor(targets)
        attention_mask[row, : len(ids)] = True
    return Batch(
        media=Media(
            torch.arange(len(samples)).unsqueeze(1),
            {
                "image": MediaInput(
                    torch.stack([image.decode(s.image) for s in samples]).unsqueeze(1)
                )
            },
        ),
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        keys=[s.key for s in samples],
        texts=[s.text for s in samples],
    )
