import hashlib
import io
import os
import random
import re
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from data_prep.config import FilterConfig, ImageConfig, SourceConfig
from data_prep.hashes import parse_hash
from data_prep.image.perceptual import mismatch, phash
from data_prep.image.pixels import rgb_on_white
from data_prep.image.verify import Verification, encode_verified
from data_prep.schema import Status

DRAWINGS = Path("/usr/share/openclipart/png")
IMAGE = ImageConfig(size=256)
ALLOWED = SourceConfig(table="x").verify_max_distance


def pack(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(side=64):
    """Coarse patches in strong colours."""
    pixels = np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def verify(data, expected, kind, image=IMAGE, **settings):
    return encode_verified(data, expected, image, FilterConfig(), Verification(kind, **settings))


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_the_files_own_hash_is_accepted_in_any_case_and_another_is_not(kind):
    data = pack(noise())
    right = hashlib.new(kind, data).hexdigest()
    wrong = hashlib.new(kind, data + b"x").hexdigest()
    assert verify(data, right, kind).status is Status.OK
    assert verify(data, right.upper(), kind).status is Status.OK
    encoded = verify(data, wrong, kind)
    assert encoded.status is Status.HASH_MISMATCH
    assert encoded.error == f"{kind} is {right}, not {wrong}"


@pytest.mark.parametrize("kind", ["sha256", "md5", "phash"])
@pytest.mark.parametrize("value", [None, "", "abc", "nan", "12" * 50, "g" * 64, "g" * 32, "g" * 16])
def test_what_is_no_hash_is_missing(kind, value):
    assert parse_hash(kind, value) is None
    encoded = verify(pack(noise()), value, kind)
    assert encoded.status is Status.MISSING_HASH
    assert encoded.error == f"{repr(value)[:100]} is no {kind}"


def test_without_verification_no_hash_is_needed():
    assert verify(pack(noise()), None, "none").status is Status.OK


def test_the_settings_of_a_source():
    source = SourceConfig(table="x", verify="phash", verify_max_distance=3)
    assert Verification.of(source) == Verification("phash", 3)


def test_a_phash_beyond_the_distance_is_a_mismatch():
    data = pack(noise(256))
    own = phash(rgb_on_white(Image.open(io.BytesIO(data))))
    assert verify(data, f"{own:016X}", "phash").status is Status.OK
    # Half of all bits, whichever noise may decide.
    other = own ^ sum(1 << bit for bit in random.sample(range(64), 32))
    for mode in ("keep_ratio", "untouched"):
        encoded = verify(data, f"{other:016x}", "phash", ImageConfig(mode=mode, size=256))
        assert encoded.status is Status.HASH_MISMATCH
        assert re.fullmatch(r"phash differs in \d+ of its \d+ clear bits, \d+ may", encoded.error)
        assert (encoded.original_width, encoded.original_height) == (256, 256)


def test_the_allowed_distance_is_exact_where_all_bits_are_clear():
    own, clear = 0, 0
    while clear != 2**64 - 1:
        picture = noise(64).resize((32, 32)).point(lambda value: 255 * (value > 127))
        own = phash(picture)
        clear = sum(
            1 << bit for bit in range(64) if mismatch(own ^ (1 << bit), [picture], 0) is not None
        )
    for count in range(8, 13):
        other = own ^ sum(1 << bit for bit in random.sample(range(64), count))
        expected = f"phash differs in {count} of its 64 clear bits, 10 may"
        assert mismatch(other, [picture], 10) == (expected if count > 10 else None)


def test_a_picture_without_features_is_told_by_its_own_hash_alone():
    blank = Image.new("RGB", (50, 50), "white")
    assert mismatch(phash(blank), [blank], 10) is None
    other = phash(blank) ^ 1
    assert mismatch(other, [blank], 10) == "phash has 1 clear bits, too few to compare"


def test_pixels_below_the_transparency_and_turned_pixels_count_too():
    """Whoever made the table may have hashed either."""
    under = noise(128)
    clear = under.copy()
    clear.putalpha(Image.linear_gradient("L").resize((128, 128)))
    assert verify(pack(clear), str(imagehash.phash(clear)), "phash").status is Status.OK
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pack(under, "JPEG", exif=exif)
    for picture in (under, under.transpose(Image.Transpose.ROTATE_270)):
        assert verify(turned, str(imagehash.phash(picture)), "phash").status is Status.OK


def test_phash_is_that_of_imagehash():
    rng = np.random.default_rng()
    for _ in range(100):
        side = rng.integers(8, 200, 2).tolist()
        picture = noise(64).resize(side)
        assert f"{phash(picture):016x}" == str(imagehash.phash(picture))


@pytest.fixture(scope="module")
def drawings():
    """RGB on white of 100 random drawings."""
    paths = [path for path in DRAWINGS.rglob("*.png") if os.path.getsize(path) < 60_000]
    pictures = []
    for path in random.sample(paths, 160):
        with Image.open(path) as image:
            if image.width * image.height < 300_000 and min(image.size) >= 16:
                pictures.append(rgb_on_white(image))
    return pictures[:100]


def half(picture):
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)


COPIES = {
    "jpeg 50": lambda picture: pack(picture, "JPEG", quality=50),
    "half size": lambda picture: pack(half(picture), "JPEG", quality=90),
    "webp": lambda picture: pack(picture, "WEBP", quality=75),
}


def test_copies_are_accepted_and_swaps_are_not(drawings):
    hashes = [phash(picture) for picture in drawings]
    copies = [
        Image.open(io.BytesIO(copy(picture))) for picture in drawings for copy in COPIES.values()
    ]
    expected = [value for value in hashes for _ in COPIES]
    refused = sum(
        mismatch(value, [copy], ALLOWED) is not None
        for value, copy in zip(expected, copies, strict=True)
    )
    # At most 1% of all drawings; three times that of so few.
    assert refused <= 0.03 * len(copies)
    pairs = random.sample([(i, j) for i in range(len(hashes)) for j in range(i)], 2000)
    small = [drawing.resize((32, 32), Image.Resampling.LANCZOS) for drawing in drawings]
    missed = sum(mismatch(hashes[i], [small[j]], ALLOWED) is None for i, j in pairs)
    assert missed <= 0.02 * len(pairs)
