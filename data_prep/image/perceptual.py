"""The perceptual hash of an image, as ImageHash's `phash` computes it and COYO's tables hold it.

Source: the DCT hash of pHash (Zauner 2010, section 3.2.2) in ImageHash's reading: 32 x 32 grey pixels,
the lowest 8 x 8 of their DCT, each against the median of all 64.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from PIL import Image

HASH_BITS = 64
_SIDE, _LOW = 32, 8
# Frequencies within half a grey level of the median: noise decides these bits. A mirror-symmetric
# drawing on white has 32 of them, and its own JPEG differs in every second one.
_OPEN = 0.5 * _SIDE * _SIDE
# With fewer clear bits than these a picture looks like too many others.
_LEAST_CLEAR = 6


def phash(picture: Image.Image) -> int:
    """64 bits, the lowest frequencies in the highest bit; as hexadecimal, ImageHash's text."""
    return _as_int(_above_median(picture) > 0)


def firm_phash(picture: Image.Image) -> int:
    """As `phash`, but 0 where noise decides the bit, so that copies of a picture have the same."""
    return _as_int(_above_median(picture) > _OPEN)


def mismatch(expected: int, pictures: Iterable[Image.Image], max_distance: int) -> str | None:
    """Why none of the pictures is the one with the expected hash; None where one is.

    Bits that noise decides are not counted, and fewer may differ of the rest, so that a chance
    agreement stays about as unlikely as `max_distance` of 64.

    Args:
        expected: as `phash` gives it.
        pictures: readings of the picture, one of which must fit.
        max_distance: how many of 64 bits may differ.
    """
    reasons = []
    for picture in pictures:
        offsets = _above_median(picture)
        found = _as_int(offsets > 0)
        clear = _as_int(np.abs(offsets) > _OPEN)
        differing, num_clear = ((found ^ expected) & clear).bit_count(), clear.bit_count()
        allowed = max(0, max_distance * (2 * num_clear - HASH_BITS) // HASH_BITS)
        if found == expected or (num_clear >= _LEAST_CLEAR and differing <= allowed):
            return None
        reasons.append(
            f"phash differs in {differing} of its {num_clear} clear bits, {allowed} may"
            if num_clear >= _LEAST_CLEAR
            else f"phash has {num_clear} clear bits, too few to compare"
        )
    return "; ".join(dict.fromkeys(reasons))


def _above_median(picture: Image.Image) -> np.ndarray:
    """Lowest frequencies of the picture less their median, float64 [8, 8]."""
    grey = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    dct = _dct()
    # Rounded, so that what is zero in a symmetric picture is not decided by the last bit.
    low = np.round(dct @ np.asarray(grey, dtype=np.float64) @ dct.T, 6)
    return low - np.median(low)


def _as_int(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@lru_cache(maxsize=1)
def _dct() -> np.ndarray:
    """Lowest rows of the type II DCT, float64 [8, 32]."""
    frequency, place = np.mgrid[0:_LOW, 0:_SIDE]
    return 2 * np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE))
