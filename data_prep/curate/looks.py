"""What an image looks like, in a few bytes: a hash that finds candidates, a miniature that decides.

The hash is a perceptual hash whose bits within the noise are 0: of a symmetric drawing on white half the
bits of `phash` are decided by noise, and its own JPEG has others. Grey as it is, it takes a red circle for
a blue one; miniatures in colour do not.

Source: the hash of `data_prep.image.perceptual`; the rest is ours.
"""

import io

import numpy as np
from PIL import Image

from data_prep.image.formats import FORMATS
from data_prep.image.perceptual import firm_phash
from data_prep.image.pixels import rgb_on_white

SIDE = 8
_DECODED = 64  # a JPEG is decoded at the least scale that has so many pixels a side


def look_at(data: bytes) -> tuple[int, np.ndarray]:
    """Hash of an image and its miniature, uint8 [SIDE, SIDE, 3].

    Raises:
        data_prep.image.formats.DECODE_ERRORS: it cannot be decoded.
    """
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    picture.draft("RGB", (_DECODED, _DECODED))
    picture = rgb_on_white(picture)
    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    return firm_phash(picture), np.asarray(small, np.uint8)
