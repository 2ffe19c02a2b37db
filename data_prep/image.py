"""Turns fetched bytes into the bytes that are stored, or says why not.

Sizes are read from the header and judged before anything is decoded, so that a small file which
unfolds into gigapixels costs nothing.
"""

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from data_prep.config import FilterConfig, ImageConfig
from data_prep.schema import Status

# Only raster formats that Pillow decodes by itself: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_WHITE = (255, 255, 255)
_STRIP_PIXELS = 1 << 20
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,  # where nobody has judged the size before
)


@dataclass(frozen=True)
class EncodedImage:
    """How one image ended; `data` is set when `status` is ok. Sizes are in pixels.

    The original size is as displayed, or as the header has it for an image refused by its size.
    """

    status: Status
    error: str = ""
    data: bytes = b""
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None


def encode_image(data: bytes, image: ImageConfig, keep: FilterConfig) -> EncodedImage:
    """Decodes, filters, resizes and encodes one image; never raises for what the bytes hold.

    Args:
        data: the file as fetched.
        image: how to store it.
        keep: which images to keep.
    """
    # Our own limit is checked below, by the caller's setting; Pillow's fixed one must not get in
    # first. Set on every call since others in the process may set it back.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as source:
                return _encode(source, image, keep)
    except DECODE_ERRORS as error:
        return EncodedImage(Status.UNDECODABLE, f"{type(error).__name__}: {error}"[:300])


def _encode(source: Image.Image, image: ImageConfig, keep: FilterConfig) -> EncodedImage:
    width, height = source.size
    # Judged before the EXIF is asked for: Pillow decodes a whole PNG to find its EXIF. The rules
    # do not care which side is which.
    refused = _judge(width, height, keep)
    if refused is not None:
        return EncodedImage(*refused, original_width=width, original_height=height)
    orientation = _orientation(source)
    if orientation in _TURNED:
        width, height = height, width
    target = _resized(source.size, image)
    # A JPEG can be decoded at 1/2, 1/4 or 1/8; twice the target leaves the resize its quality.
    source.draft(None, (2 * target[0], 2 * target[1]))
    picture, box = _reduced_on_white(source, target)
    if picture.size != target:
        picture = picture.resize(target, Image.Resampling.LANCZOS, box=box)
    if orientation != 1:  # turned last, when the picture is small
        exif = picture.getexif()
        exif[_ORIENTATION] = orientation
        picture = ImageOps.exif_transpose(picture)
    if image.mode == "center_crop":
        left, top = (picture.width - image.size) // 2, (picture.height - image.size) // 2
        picture = picture.crop((left, top, left + image.size, top + image.size))
    elif image.mode == "border":
        canvas = Image.new("RGB", (image.size, image.size), _WHITE)
        canvas.paste(
            picture, ((image.size - picture.width) // 2, (image.size - picture.height) // 2)
        )
        picture = canvas
    buffer = io.BytesIO()
    # A picture rebuilt from its pixels carries no EXIF, no profile and no comments along.
    plain = Image.new("RGB", picture.size)
    plain.paste(picture)
    if image.format == "jpg":
        plain.save(buffer, "JPEG", quality=image.quality)
    elif image.format == "webp":
        plain.save(buffer, "WEBP", quality=image.quality)
    else:
        plain.save(buffer, "PNG")
    return EncodedImage(
        Status.OK,
        data=buffer.getvalue(),
        width=plain.width,
        height=plain.height,
        original_width=width,
        original_height=height,
    )


def _orientation(source: Image.Image) -> int:
    try:
        value = source.getexif().get(_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1  # broken EXIF in a good picture
    return value if value in range(1, 9) else 1


def _judge(width: int, height: int, keep: FilterConfig) -> tuple[Status, str] | None:
    if width * height > keep.max_pixels:
        return (
            Status.TOO_MANY_PIXELS,
            f"{width} x {height} is more than {keep.max_pixels} pixels",
        )
    shorter, longer = min(width, height), max(width, height)
    if shorter < max(1, keep.min_side_pixels):
        return Status.FILTERED_SIZE, f"shorter side {shorter} < {keep.min_side_pixels} pixels"
    if longer > keep.max_aspect_ratio * shorter:
        return (
            Status.FILTERED_ASPECT_RATIO,
            f"{longer / shorter:.1f} to 1 is more than {keep.max_aspect_ratio:g}",
        )
    return None


def _resized(size: tuple[int, int], image: ImageConfig) -> tuple[int, int]:
    """Size after the resize, before cropping or padding."""
    width, height = size
    if image.mode == "center_crop":
        scale = image.size / min(width, height)
    elif image.mode == "border":
        scale = image.size / max(width, height)
    else:
        scale = min(1.0, image.size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _reduced_on_white(
    source: Image.Image, target: tuple[int, int]
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """The decoded image as RGB on white, shrunk by a whole factor where it is far too large.

    It is worked off in strips: a picture of 80 megapixels is in memory once, as decoded, and not
    again for each conversion.

    Returns:
        the picture, and the box of it that the original fills (its last pixels may be partial).
    """
    source.load()
    width, height = source.size
    # Three times the target and more leaves the final resize its quality.
    factor = max(1, min(width // (3 * target[0]), height // (3 * target[1])))
    sixteen_bit = _is_sixteen_bit(source)
    if factor == 1 and width * height <= _STRIP_PIXELS:
        return _on_white(source, sixteen_bit), (0, 0, width, height)
    picture = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    step = factor * max(1, _STRIP_PIXELS // (width * factor))
    for top in range(0, height, step):
        strip = source.crop((0, top, width, min(height, top + step)))
        picture.paste(_on_white(strip, sixteen_bit).reduce(factor), (0, top // factor))
    return picture, (0, 0, width / factor, height / factor)


def rgb_on_white(source: Image.Image) -> Image.Image:
    """The whole decoded image as RGB: transparency on white, of 16 bits the upper 8, turned upright.

    Raises:
        one of `DECODE_ERRORS`.
    """
    source.load()
    picture = _on_white(source, _is_sixteen_bit(source))
    if "exif" in source.info and _orientation(source) != 1:
        exif = picture.getexif()
        exif[_ORIENTATION] = _orientation(source)
        picture = ImageOps.exif_transpose(picture)
    return picture


def _is_sixteen_bit(source: Image.Image) -> bool:
    if source.mode == "I":
        return source.getextrema()[1] > 255
    return source.mode.startswith("I;16")


def _on_white(source: Image.Image, sixteen_bit: bool) -> Image.Image:
    """The image, or a strip of it, as RGB, transparency laid on white."""
    if source.mode.startswith("I") or source.mode == "F":
        # Of 16 bits a channel the upper 8 are kept (Pillow's own conversion would clip).
        pixels = np.asarray(source)
        if sixteen_bit:
            pixels = pixels >> 8
        return Image.fromarray(np.clip(np.nan_to_num(pixels), 0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if source.mode not in ("LA", "PA", "La", "RGBA", "RGBa") and "transparency" not in source.info:
        return source.convert("RGB")
    layer = source if source.mode == "RGBA" else source.convert("RGBA")
    canvas = Image.new("RGB", layer.size, _WHITE)
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas
