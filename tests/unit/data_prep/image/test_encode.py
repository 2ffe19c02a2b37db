import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from data_prep.config import FilterConfig, ImageConfig
from data_prep.image.encode import encode_image
from data_prep.schema import Status
from tests.helpers.pictures import noise_picture


def pack(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encode(data, *, keep=None, **settings):
    settings = {"size": 32, "format": "png", **settings}
    return encode_image(data, ImageConfig(**settings), FilterConfig(**(keep or {})))


def decode(encoded):
    assert encoded.status is Status.OK, encoded.error
    image = Image.open(io.BytesIO(encoded.data))
    assert image.size == (encoded.width, encoded.height)
    return image


def png_bomb(width, height):
    """A PNG of one grey row, packed small, that claims to be huge."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(width + 1) * 50)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)


def test_a_pixel_bomb_is_refused_by_its_header(monkeypatch):
    def never(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    encoded = encode(png_bomb(30_000, 30_000))
    assert encoded.status is Status.TOO_MANY_PIXELS
    assert encoded.error == "30000 x 30000 is more than 89478485 pixels"
    assert (encoded.original_width, encoded.original_height) == (30_000, 30_000)


def test_the_pixel_limit_is_the_callers_and_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert encode(pack(Image.new("RGB", (50, 50)))).status is Status.OK


@pytest.mark.parametrize(
    ("keep", "status", "error"),
    [
        ({"max_pixels": 799}, Status.TOO_MANY_PIXELS, "40 x 20 is more than 799 pixels"),
        ({"min_side_pixels": 21}, Status.FILTERED_SIZE, "shorter side 20 < 21 pixels"),
        (
            {"max_aspect_ratio": 1.9},
            Status.FILTERED_ASPECT_RATIO,
            "2.0 to 1 is more than 1.9",
        ),
        ({"max_aspect_ratio": 2, "min_side_pixels": 20, "max_pixels": 800}, Status.OK, ""),
    ],
)
def test_filters(keep, status, error):
    encoded = encode(pack(Image.new("RGB", (40, 20))), keep=keep)
    assert (encoded.status, encoded.error) == (status, error)


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("keep_ratio", (100, 50), (32, 16)),
        ("keep_ratio", (50, 100), (16, 32)),
        ("keep_ratio", (20, 10), (20, 10)),
        ("center_crop", (100, 50), (32, 32)),
        ("center_crop", (20, 10), (32, 32)),
        ("border", (100, 50), (32, 32)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_modes(mode, size, expected, kind):
    encoded = encode(pack(Image.new("RGB", size, "red"), kind), mode=mode)
    assert decode(encoded).size == expected
    assert (encoded.original_width, encoded.original_height) == size


def test_border_is_white_and_the_picture_in_the_middle():
    image = decode(encode(pack(Image.new("RGB", (100, 50), (255, 0, 0))), mode="border"))
    assert image.getpixel((16, 2)) == (255, 255, 255)
    assert image.getpixel((16, 16)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_and_dropped(orientation):
    upright = Image.new("RGB", (64, 32), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 16, 16))  # red marks the top left corner
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(pack(stored, "JPEG", quality=95, exif=exif))
    image = decode(encoded)
    assert image.size == (32, 16)
    assert (encoded.original_width, encoded.original_height) == (64, 32)
    red, _, blue = image.getpixel((3, 3))
    assert red > 200 and blue < 60
    red, _, blue = image.getpixel((28, 12))
    assert red < 60 and blue > 200
    assert not image.getexif()


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_images_are_undecodable(share, kind):
    data = pack(noise_picture(64, 64), kind)
    encoded = encode(data[: int(len(data) * share)])
    assert encoded.status is Status.UNDECODABLE
    assert encoded.error


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"%!PS-Adobe-3.0 EPSF", bytes(100)])
def test_other_bytes_are_undecodable(data):
    assert encode(data).status is Status.UNDECODABLE


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([10, 20, 30])
    grey = Image.new("LA", (40, 40), (0, 0))
    for data in (pack(clear), pack(palette, transparency=0), pack(grey), pack(clear, "WEBP")):
        image = decode(encode(data))
        assert image.mode == "RGB"
        assert image.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_sixteen_bits_keep_their_brightness(value):
    pixels = np.full((40, 40), value * 257, dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        image = decode(encode(pack(Image.fromarray(pixels), kind)))
        assert image.getpixel((5, 5)) == (value, value, value)


def test_cmyk_and_bilevel():
    assert decode(encode(pack(Image.new("CMYK", (40, 40)), "JPEG"))).mode == "RGB"
    assert decode(encode(pack(Image.new("1", (40, 40), 1)))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_strips_give_what_the_whole_gives(monkeypatch, mode):
    yx = np.mgrid[0:301, 0:407].sum(axis=0)
    image = Image.fromarray((yx % 256).astype(np.uint8)).convert(mode)
    whole = decode(encode(pack(image), size=400))
    monkeypatch.setattr("data_prep.image.resize._STRIP_PIXELS", 2000)
    assert np.array_equal(np.asarray(decode(encode(pack(image), size=400))), np.asarray(whole))


def test_a_huge_image_is_shrunk_by_a_factor_without_moving():
    image = Image.new("RGB", (1001, 777), (255, 255, 255))
    image.paste((0, 0, 0), (500, 0, 1001, 777))
    small = np.asarray(decode(encode(pack(image))))[:, :, 0]
    edge = 500 / 1001 * 32
    assert abs((small > 127).sum(axis=1) - edge).max() <= 1


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_the_same_bytes_come_out_each_time(kind):
    data = pack(noise_picture(60, 80))
    first = encode(data, format=kind)
    assert first.data == encode(data, format=kind).data
    assert Image.open(io.BytesIO(first.data)).format == {"jpg": "JPEG"}.get(kind, kind.upper())


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_webp_is_judged_before_pillow_makes_room_for_it(monkeypatch, options, alpha):
    def never(*_, **__):
        raise AssertionError("opened")

    width, height = np.random.default_rng().integers(2, 3000, 2).tolist()
    image = Image.new("RGBA" if alpha else "RGB", (width, height))
    data = pack(image, "WEBP", method=0, **options)
    monkeypatch.setattr(Image, "open", never)
    encoded = encode(data, keep={"max_pixels": width * height - 1, "max_aspect_ratio": 1e9})
    assert encoded.status is Status.TOO_MANY_PIXELS
    assert (encoded.original_width, encoded.original_height) == (width, height)
