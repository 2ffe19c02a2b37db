"""Pixels of any mode as grey or RGB on white."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from data_prep.image.formats import read_orientation, upright

WHITE = (255, 255, 255)
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def rgb_on_white(source: Image.Image) -> Image.Image:
    """The whole decoded image as RGB: transparency on white, of 16 bits the upper 8, turned upright.

    Raises:
        one of `DECODE_ERRORS`.
    """
    source.load()
    picture = flattener(source)(source).convert("RGB")
    return upright(picture, read_orientation(source)) if "exif" in source.info else picture


def flattener(source: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What turns a decoded image, or strips of it, into mode L (where all is grey) or RGB, on white.

    It is decided once, by the whole image, so that all strips are treated alike.
    """
    mode = source.mode
    if mode.startswith("I") or mode == "F":
        shift = 8 if _is_sixteen_bit(source) else 0
        return lambda strip: _upper_bits(strip, shift)
    if mode == "P":
        return _palette_flattener(source)
    if mode in _ALPHA or "transparency" in source.info:
        return _on_white
    if mode == "LAB":
        return _lab_to_rgb
    return lambda strip: strip.convert("L" if mode in ("1", "L") else "RGB")


def has_alpha(source: Image.Image) -> bool:
    """Whether parts of the image may be transparent."""
    return source.mode in _ALPHA or "transparency" in source.info


def _is_sixteen_bit(source: Image.Image) -> bool:
    if source.mode == "I":
        return source.getextrema()[1] > 255
    return source.mode.startswith("I;16")


def _upper_bits(strip: Image.Image, shift: int) -> Image.Image:
    # Of 16 bits a channel the upper 8 are kept (Pillow's own conversion would clip).
    pixels = np.asarray(strip)
    pixels = pixels >> shift if shift else np.nan_to_num(pixels)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _palette_flattener(source: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Lays the 256 colours on white, not the pixels."""
    swatch = Image.frombytes("P", (256, 1), bytes(range(256)))
    swatch.putpalette(source.getpalette("RGB"))
    if "transparency" in source.info:
        swatch.info["transparency"] = source.info["transparency"]
        swatch = _on_white(swatch)
    colours = np.asarray(swatch.convert("RGB"))[0]
    mode = "L" if (colours == colours[:, :1]).all() else "RGB"
    palette = colours.tobytes()

    def flatten(strip: Image.Image) -> Image.Image:
        strip = strip.copy()
        strip.putpalette(palette)
        strip.info.pop("transparency", None)
        return strip.convert(mode)

    return flatten


def _on_white(strip: Image.Image) -> Image.Image:
    if strip.mode == "LA":
        grey = Image.new("L", strip.size, 255)
        grey.paste(strip.getchannel("L"), mask=strip.getchannel("A"))
        return grey
    layer = strip if strip.mode == "RGBA" else strip.convert("RGBA")
    alpha = layer.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return layer.convert("RGB")
    canvas = Image.new("RGB", layer.size, WHITE)
    canvas.paste(layer, mask=alpha)
    return canvas


def _lab_to_rgb(strip: Image.Image) -> Image.Image:
    from PIL import ImageCms  # what few need

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(strip, lab, srgb, outputMode="RGB")
