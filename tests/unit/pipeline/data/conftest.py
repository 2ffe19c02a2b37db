"""Small dataset folders whose samples tell where they come from, and the formats to read them with."""

import io

import numpy as np
import pytest
from PIL import Image

from model.tokens import TokenIds
from pipeline.data.image import ImageFormat
from pipeline.data.text import TextFormat
from pipeline.data.tokenizer import train_tokenizer

WORDS = ("red", "small", "blue square", "left of", "a large green star", "two circles")


def picture(number: int, side: int = 12) -> bytes:
    """A JPEG that differs from number to number."""
    pixels = np.random.default_rng(number).integers(0, 256, (3, 3, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), 0).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def caption(number: int) -> str:
    """A text of one to nine words, the number first."""
    length = np.random.default_rng(number).integers(0, 9)
    return " ".join([str(number), *(WORDS[(number + i) % len(WORDS)] for i in range(length))])


def pair(number: int) -> dict[str, bytes]:
    """Members of an image-text pair."""
    return {"jpg": picture(number), "txt": caption(number).encode(), "json": b"{}"}


def interleaved(number: int) -> dict[str, bytes]:
    """Members of a document of up to three images."""
    members = {"0.txt": f"doc {number}".encode()}
    for i in range(number % 3 + 1):
        members |= {f"{2 * i + 1}.jpg": picture(1000 * number + i)}
        members |= {f"{2 * i + 2}.txt": caption(number + i).encode()}
    return members


@pytest.fixture(scope="session")
def text_format() -> TextFormat:
    tokenizer = train_tokenizer([caption(n) for n in range(300)], 300)
    return TextFormat(tokenizer, TokenIds({"image": 301}, (300,)), 24)


@pytest.fixture(scope="session")
def image_format() -> ImageFormat:
    return ImageFormat(12, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
