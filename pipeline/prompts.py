"""Prompts: images and texts in reading order, few-shot examples before a question, as the model takes them.

Token for token what training lays out (`pipeline.data.text.TextFormat`): an example is an image, its text and
the end of its chunk, and the query is the next image with the beginning of its text:

    <s> <image> text <|endofchunk|> <image> text <|endofchunk|> <image> beginning

Source: the prompts of open_flamingo's evaluation, except that they begin with the token that begins a sample in
training, and that no space or newline stands between what training has side by side.
"""

import io
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_prep.errors import ConfigError, Problem
from data_prep.image.formats import DECODE_ERRORS
from model.flamingo import Flamingo
from model.media import Media, MediaInput
from model.padding import pad_left
from model.tokens import IMAGE_TOKEN
from pipeline.data.batch import normalise
from pipeline.data.image import ImageFormat
from pipeline.data.text import TextFormat

Part = bytes | str
VQA_FORM = "Question: {question} Short answer:"
UNLIMITED = 2**31


@dataclass(frozen=True)
class Prompts:
    """Prompts of a batch, padded on the left.

    Attributes:
        pixels: uint8 ``[N, 3, S, S]`` of all images, one prompt after another.
        slots: int64 ``[B, M]``, which image stands where; -1 for none.
        input_ids: int64 ``[B, T]``.
        attention_mask: bool ``[B, T]``.
        image: that made the pixels.
    """

    pixels: Tensor
    slots: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    image: ImageFormat

    def zero_images(self) -> "Prompts":
        """The control: the same prompts with black images."""
        return replace(self, pixels=torch.zeros_like(self.pixels))

    def media(self, device: torch.device, dtype: torch.dtype) -> Media:
        """The images as `model.flamingo.Flamingo` takes them."""
        pixels = self.pixels.to(device).unsqueeze(1)
        shown = MediaInput(normalise(pixels, self.image.mean, self.image.std, dtype))
        return Media(self.slots.to(device), {"image": shown})

    def to(self, device: torch.device, dtype: torch.dtype) -> tuple[Media, Tensor, Tensor]:
        """(media, input_ids, attention_mask) on a device."""
        return (
            self.media(device, dtype),
            self.input_ids.to(device),
            self.attention_mask.to(device),
        )


def few_shot(shots: list[tuple[bytes, str]], image: bytes, beginning: str = "") -> list[Part]:
    """Parts of a prompt with examples.

    Args:
        shots: (image, whole text) in the order in which they stand.
        image: of the query.
        beginning: of its text, to be continued.
    """
    parts: list[Part] = []
    for shown, text in shots:
        parts += [shown, text]
    return [*parts, image, *([beginning] if beginning else [])]


def place_images(prompt: str, images: list[bytes], key: str = "--prompt") -> list[Part]:
    """Parts of a prompt in which `<image>` says where each image stands.

    A prompt without any mark has all images in front.

    Args:
        prompt: the text.
        images: encoded, in order.
        key: that names the prompt, for messages.

    Raises:
        ConfigError: there are more or fewer marks than images.
    """
    texts = prompt.split(IMAGE_TOKEN)
    if len(texts) == 1:
        return [*images, *([prompt] if prompt else [])]
    if len(texts) - 1 != len(images):
        rule = (
            f"has a mark {IMAGE_TOKEN} for every image: {len(texts) - 1} for {len(images)}"
            if images
            else f"has {len(texts) - 1} marks {IMAGE_TOKEN} and no image is given"
        )
        remedy = f"give as many images as marks, or leave {IMAGE_TOKEN} out to have all in front"
        raise ConfigError([Problem(key, prompt, rule, remedy)])
    parts: list[Part] = []
    for number, text in enumerate(texts):
        parts += [images[number - 1]] if number else []
        parts += [text] if text else []
    return parts


def prompt_ids(text: TextFormat, prompts: list[list[Part]]) -> list[list[int]]:
    """Tokens of prompts, up to where the model is to go on.

    The last text is left open: neither its chunk nor the document ends.
    """
    whole = replace(text, max_tokens=UNLIMITED, max_images=UNLIMITED)
    ids = [encoded.ids for encoded in whole.encode(prompts)]
    return [_opened(row, text.end_ids) for row in ids]


def text_ids(text: TextFormat, written: str) -> list[int]:
    """Tokens of a text that stands behind a prompt, without its end marks."""
    return prompt_ids(text, [[written]])[0][1:] if written else []


def _opened(ids: list[int], end_ids: list[int]) -> list[int]:
    *chunk, document = end_ids
    assert ids[-1] == document, "a sample ends with the end of its document"
    ids = ids[:-1]
    return ids[:-1] if ids[-1:] == chunk else ids


def encode_prompts(
    text: TextFormat,
    image: ImageFormat,
    prompts: list[list[Part]],
    *,
    keys: list[str] | None = None,
    names: list[list[str]] | None = None,
) -> Prompts:
    """Tokens and pixels of prompts.

    Args:
        text: how texts become tokens.
        image: how images become pixels.
        prompts: each an image file's bytes and texts in reading order.
        keys: that name the prompts, for messages.
        names: of each prompt's images, for messages.

    Raises:
        ConfigError: naming every prompt with an image that cannot be decoded.
    """
    problems, pixels, slots = [], [], []
    for number, parts in enumerate(prompts):
        mine = []
        for place, data in enumerate(part for part in parts if isinstance(part, bytes)):
            try:
                decoded = image.decode(data)
            except DECODE_ERRORS as error:
                key = keys[number] if keys else f"prompt {number}"
                name = names[number][place] if names else f"{len(data)} bytes"
                rule = f"image {place} can be decoded: {error}"
                problems.append(Problem(key, name, rule, "give a PNG or JPEG"))
                continue
            mine.append(len(pixels))
            pixels.append(decoded)
        slots.append(mine)
    if problems:
        raise ConfigError(problems)
    input_ids, attention_mask = pad_left(prompt_ids(text, prompts), text.pad_id)
    # The encoder runs even where no prompt shows anything.
    blank = np.zeros((3, image.size, image.size), np.uint8)
    width = max(1, *map(len, slots))
    return Prompts(
        pixels=torch.from_numpy(np.stack(pixels or [blank])),
        slots=torch.tensor([row + [-1] * (width - len(row)) for row in slots]),
        input_ids=input_ids,
        attention_mask=attention_mask,
        image=image,
    )


def continue_texts(
    model: Flamingo,
    text: TextFormat,
    prompts: Prompts,
    device: torch.device,
    dtype: torch.dtype,
    **settings: object,
) -> list[str]:
    """What the model says after each prompt, up to its end marks.

    Args:
        model: on `device`.
        text: how tokens become texts.
        prompts: to be continued.
        device: of the model.
        dtype: of the model.
        **settings: of `Flamingo.generate`.
    """
    ids = model.generate(
        *prompts.to(device, dtype),
        eos_token_id=text.end_ids,
        pad_token_id=text.pad_id,
        **settings,
    )
    width = prompts.input_ids.shape[1]
    return [text.decode(row[width:].tolist()) for row in ids]


def image_bytes(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file, which loses nothing."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
