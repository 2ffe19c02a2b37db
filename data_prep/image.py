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
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_WHITE = (255, 255, 255)
_DECODE_ERRORS = (
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
)


@dataclass(frozen=True)
class EncodedImage:
    """How one image ended; `data` is set when `status` is ok. Sizes are in pixels, as displayed."""

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
            with Image.open(io.BytesIO(data), formats=_FORMATS) as source:
                return _encode(source, image, keep)
    except _DECODE_ERRORS as error:
        return EncodedImage(Status.UNDECODABLE, f"{type(error).__name__}: {error}"[:300])


def _encode(source: Image.Image, image: ImageConfig, keep: FilterConfig) -> EncodedImage:
    orientation = _orientation(source)
    width, height = source.size
    if orientation in _TURNED:
        width, height = height, width
    refused = _judge(width, height, keep)
    if refused is not None:
        return EncodedImage(*refused, original_width=width, original_height=height)
    target = _resized(source.size, image)
    # A JPEG can be decoded at 1/2, 1/4 or 1/8; twice the target leaves the resize its quality.
    source.draft(None, (2 * target[0], 2 * target[1]))
    picture = _on_white(source)
    if picture.size != target:
        picture = picture.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
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
    except _DECODE_ERRORS:
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


def _on_white(source: Image.Image) -> Image.Image:
    """The decoded image as RGB, transparency laid on white."""
    if source.mode.startswith("I") or source.mode == "F":
        # 16 bits a channel: the upper 8 are kept (Pillow's own conversion would clip).
        pixels = np.asarray(source)
        if source.mode == "F":
            pixels = np.nan_to_num(pixels) * (255.0 if float(pixels.max(initial=0)) <= 1 else 1.0)
        elif pixels.max(initial=0) > 255 or source.mode.startswith("I;16"):
            pixels = pixels >> 8
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert("RGB")
    transparent = source.mode in ("LA", "PA", "La", "RGBA", "RGBa")
    if not transparent and "transparency" not in source.info:
        return source.convert("RGB")
    layer = source if source.mode == "RGBA" else source.convert("RGBA")
    layer.load()
    canvas = Image.new("RGB", layer.size, _WHITE)
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas
