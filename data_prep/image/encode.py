"""Turns fetched bytes into the bytes that are stored, or says why not.

Sizes are read from the header and judged before anything is decoded, so that a small file which
unfolds into gigapixels costs nothing.
"""

import io
import warnings
from dataclasses import dataclass

from PIL import Image

from data_prep.config import FilterConfig, ImageConfig
from data_prep.image.colour import to_srgb
from data_prep.image.filters import refusal
from data_prep.image.formats import (
    DECODE_ERRORS,
    EXTENSIONS,
    FORMATS,
    read_orientation,
    swaps_sides,
    upright,
    webp_size,
)
from data_prep.image.perceptual import mismatch
from data_prep.image.pixels import has_alpha
from data_prep.image.resize import fit, resize_on_white, resized_size
from data_prep.schema import Status

# Sides beyond these cannot be written; 65535 is also what an index record holds.
_MAX_SIDE = {"jpg": 65_500, "png": 65_535, "webp": 16_383}


@dataclass(frozen=True)
class EncodedImage:
    """How one image ended; `data`, `format` and the stored size are set when `status` is ok.

    Sizes are in pixels. The original size is as displayed, or as the header has it for an image
    that was refused or is broken; the stored one is as the stored file's header has it.
    """

    status: Status
    error: str = ""
    data: bytes = b""
    format: str = ""  # extension of what is stored: jpg, png or webp
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None


def encode_image(
    data: bytes, image: ImageConfig, keep: FilterConfig, phash: tuple[int, int] | None = None
) -> EncodedImage:
    """Decodes, filters, resizes and encodes one image; never raises for what the bytes hold.

    Args:
        data: the file as fetched.
        image: how to store it.
        keep: which images to keep.
        phash: expected perceptual hash, and in how many bits it may differ.
    """
    # Our own limit is checked below, by the caller's setting; Pillow's fixed one must not get in
    # first. Set on every call since others in the process may set it back.
    Image.MAX_IMAGE_PIXELS = None
    size = webp_size(data)
    refused = size and refusal(*size, keep)
    if refused:
        return EncodedImage(*refused, **_original(size))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as source:
                size = source.size
                return _encode(source, data, image, keep, phash)
    except MemoryError as error:
        return EncodedImage(Status.DECODER_MEMORY, _reason(error), **_original(size))
    except DECODE_ERRORS as error:
        return EncodedImage(Status.UNDECODABLE, _reason(error), **_original(size))


def _encode(
    source: Image.Image,
    data: bytes,
    image: ImageConfig,
    keep: FilterConfig,
    phash: tuple[int, int] | None,
) -> EncodedImage:
    width, height = source.size
    refused = refusal(width, height, keep)
    if refused is not None:
        return EncodedImage(*refused, **_original(source.size))
    orientation = read_orientation(source)
    sizes = _original((height, width) if swaps_sides(orientation) else (width, height))
    if _stays_as_it_is(source, orientation, image):
        source.load()  # whole, or it raises
        if other := phash and _mismatch(source, _small(source), orientation, phash):
            return EncodedImage(Status.HASH_MISMATCH, other, **sizes)
        extension = EXTENSIONS[source.format]
        return EncodedImage(Status.OK, "", data, extension, width, height, **sizes)
    picture = resize_on_white(source, resized_size(source.size, image))
    if other := phash and _mismatch(source, picture, orientation, phash):
        return EncodedImage(Status.HASH_MISMATCH, other, **sizes)
    # Turned only now that the picture is small.
    picture = fit(upright(picture, orientation), image).convert("RGB")
    longest = max(picture.size)
    if longest > _MAX_SIDE[image.format]:
        reason = f"a side of {longest} pixels cannot be stored as {image.format}"
        return EncodedImage(Status.TOO_MANY_PIXELS, reason, **sizes)
    stored = _save(picture, image)
    return EncodedImage(Status.OK, "", stored, image.format, *picture.size, **sizes)


def _stays_as_it_is(source: Image.Image, orientation: int, image: ImageConfig) -> bool:
    """Whether the file is stored as fetched."""
    extension = EXTENSIONS.get(source.format)
    if image.mode == "untouched":
        return extension is not None and max(source.size) <= 65_535
    if not image.skip_reencode or extension != image.format:
        return False
    kept = source.size if image.mode == "keep_ratio" else (image.size, image.size)
    return (
        resized_size(source.size, image) == source.size == kept
        and orientation == 1
        and source.mode == "RGB"
        and not has_alpha(source)
        and getattr(source, "n_frames", 1) == 1
        and to_srgb(source) is None
    )


def _small(source: Image.Image) -> Image.Image:
    return resize_on_white(source, resized_size(source.size, ImageConfig(size=256)))


def _mismatch(
    source: Image.Image, picture: Image.Image, orientation: int, phash: tuple[int, int]
) -> str | None:
    """Why it is another picture than the expected one; None where it is not.

    Who made the table may have looked at the pixels as they are stored or as they are displayed,
    and below the transparency or with it: any of them counts.
    """
    readings = [picture]
    if has_alpha(source):
        readings.append(source.convert("L"))
    if orientation != 1:
        readings += [upright(reading, orientation) for reading in readings]
    expected, max_distance = phash
    return mismatch(expected, readings, max_distance)


def _save(picture: Image.Image, image: ImageConfig) -> bytes:
    picture.info = {}  # or profile, comment and EXIF of the original would be written too
    buffer = io.BytesIO()
    if image.format == "jpg":
        picture.save(buffer, "JPEG", quality=image.quality)
    elif image.format == "webp":
        picture.save(buffer, "WEBP", quality=image.quality)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()


def _original(size: tuple[int, int] | None) -> dict[str, int]:
    return {} if size is None else {"original_width": size[0], "original_height": size[1]}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
