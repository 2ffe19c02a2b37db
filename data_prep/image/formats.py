"""Which files count as images, what goes wrong in reading one, and which way is up."""

import struct

from PIL import Image

# Only raster formats that Pillow decodes by itself: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# Of what may be stored: the extension. A JPEG with further pictures behind the first is an MPO.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,  # of AVIF
    MemoryError,
    struct.error,
    Image.DecompressionBombError,  # where nobody has judged the size before
)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP by its header; None where it is no WebP, or cut off in its header.

    Pillow makes room for all of its pixels as soon as it opens one.

    Source: RFC 9649 sections 2.5 to 2.7.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return tuple(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return tuple(int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return None


def read_orientation(source: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none, or none that can be read.

    Pillow decodes a whole PNG to find its EXIF, so judge the size before.
    """
    try:
        value = source.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except DECODE_ERRORS:
        return 1  # broken EXIF in a good picture
    return value if value in _UPRIGHT else 1


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture as it is to be looked at."""
    return picture if orientation == 1 else picture.transpose(_UPRIGHT[orientation])


def swaps_sides(orientation: int) -> bool:
    """Whether width and height change places when the picture is turned upright."""
    return orientation >= 5
