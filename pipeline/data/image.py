"""Encoded images to pixels for the encoder, with augmentation that depends on seed and position alone."""

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from data_prep.image.formats import FORMATS
from data_prep.image.pixels import rgb_on_white
from pipeline.data.config import ImageInputConfig
from pipeline.data.permutation import hash_key


@dataclass(frozen=True)
class ImageFormat:
    """How an image becomes pixels of a square.

    Attributes:
        size: S, side of the square.
        mean: of each channel, of values from 0 to 1.
        std: likewise.
        config: section `data.image`: how it is fitted into the square, and augmentation.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    config: ImageInputConfig = field(default_factory=ImageInputConfig)

    def decode(self, data: bytes, draw: "Draw | None" = None) -> np.ndarray:
        """Pixels of one image, uint8 ``[3, S, S]``.

        Args:
            data: the encoded image.
            draw: random numbers of this image, in training; None for none.

        Raises:
            one of `data_prep.image.formats.DECODE_ERRORS`: it is no image, cut off, or far too large.
        """
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if self.config.fit != "pad":
            # JPEG at a half, a quarter or an eighth straight from its coefficients; never too small
            # for what a random crop may keep of it.
            least = self.config.crop_area**0.5 if draw is not None else 1.0
            shrink = self.size / (least * min(image.size))
            image.draft(None, tuple(int(side * shrink) + 1 for side in image.size))
        image = rgb_on_white(image)
        box = self._box(image.size, draw)
        side = (self.size, self.size)
        if self.config.fit == "pad":
            image = self._pad(image)
        elif image.size != side or box not in (None, (0, 0, *side)):
            image = image.resize(side, Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(image)
        if draw is not None and draw.uniform("flip") < self.config.flip_ratio:
            pixels = pixels[:, ::-1]
        if draw is not None and draw.uniform("drop") < self.config.drop_ratio:
            pixels = np.zeros_like(pixels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _box(self, size: tuple[int, int], draw: "Draw | None") -> tuple | None:
        """The part of the image that fills the square; None for all of it."""
        if self.config.fit != "crop":
            return None
        width, height = size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        if draw is not None and self.config.crop_area < 1:
            area = self.config.crop_area + (1 - self.config.crop_area) * draw.uniform("area")
            side *= area**0.5
            left = (width - side) * draw.uniform("left")
            top = (height - side) * draw.uniform("top")
        return left, top, left + side, top + side

    def _pad(self, image: Image.Image) -> Image.Image:
        scale = self.size / max(image.size)
        inner = tuple(max(1, round(side * scale)) for side in image.size)
        if inner != image.size:
            image = image.resize(inner, Image.Resampling.BICUBIC)
        square = Image.new("RGB", (self.size, self.size), "white")
        square.paste(image, ((self.size - inner[0]) // 2, (self.size - inner[1]) // 2))
        return square


@dataclass(frozen=True)
class Draw:
    """Random numbers of one image: a function of seed, position and number of the image in the sample."""

    seed: int
    position: int
    image: int

    def uniform(self, what: str) -> float:
        """A number in [0, 1) for one purpose, whatever else is drawn."""
        key = hash_key(self.seed, "image", self.position, self.image, what)
        return int(key[0] >> np.uint64(11)) / 2**53
