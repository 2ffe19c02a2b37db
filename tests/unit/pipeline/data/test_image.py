"""Images into the square of the encoder, and augmentation by seed and position."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.image.formats import DECODE_ERRORS
from pipeline.data.config import ImageInputConfig
from pipeline.data.image import Draw, ImageFormat

HALF = (0.5, 0.5, 0.5)


def jpeg(width: int, height: int, format_: str = "PNG") -> bytes:
    """Red in the left half, green in the right, and a blue stripe at the top."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 1] = 255
    pixels[: max(1, height // 8), :, 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, quality=95)
    return buffer.getvalue()


def image_format(size: int = 16, **config) -> ImageFormat:
    return ImageFormat(size, HALF, HALF, ImageInputConfig(**config))


def test_an_image_of_the_right_size_is_taken_as_it_is():
    pixels = image_format(32).decode(jpeg(32, 32))
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 32, 32)
    assert (pixels[0, :, :16] == 255).all() and (pixels[1, :, 16:] == 255).all()


def test_crop_keeps_the_middle_and_its_proportions():
    pixels = image_format(16).decode(jpeg(64, 32))
    assert (pixels[0, :, :7] > 250).all() and (pixels[1, :, 9:] > 250).all()


def test_pad_is_white_and_squash_is_not():
    padded = image_format(16, fit="pad").decode(jpeg(64, 32))
    assert (padded[:, :4] == 255).all() and (padded[:, 12:] == 255).all()
    squashed = image_format(16, fit="squash").decode(jpeg(64, 32))
    assert squashed[2, 0].min() > 200 and squashed[2, 8].max() < 50


def test_a_large_jpeg_is_decoded_small_and_nearly_equal():
    data = jpeg(1024, 768, "JPEG")
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    expected = whole.resize((64, 64), Image.Resampling.BICUBIC, box=(128, 0, 896, 768))
    pixels = image_format(64).decode(data).transpose(1, 2, 0)
    assert np.abs(pixels.astype(int) - np.asarray(expected)).mean() < 2


def test_transparency_is_white_and_sixteen_bits_are_not_clipped():
    line_art = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    line_art.paste((0, 0, 0, 255), (4, 4, 8, 8))
    grey = Image.fromarray(np.full((16, 16), 0x8000, np.uint16))
    for image, corner in ((line_art, 255), (grey, 128)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        pixels = image_format(16).decode(buffer.getvalue())
        assert (pixels[:, 0, 0] == corner).all()
    assert image_format(16).decode(jpeg(16, 16)).max() == 255


def test_an_image_is_turned_upright():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.open(io.BytesIO(jpeg(32, 32))).save(buffer, "JPEG", quality=95, exif=exif)
    pixels = image_format(32).decode(buffer.getvalue()).astype(int)
    upright = image_format(32).decode(jpeg(32, 32)).astype(int)
    assert np.abs(pixels - np.rot90(upright, -1, axes=(1, 2))).mean() < 12


def test_draws_depend_on_seed_position_and_image_alone():
    random = image_format(16, crop_area=0.3, flip_ratio=0.5, drop_ratio=0.2)
    data = jpeg(40, 50)
    first = [random.decode(data, Draw(1, position, 0)) for position in range(20)]
    again = [random.decode(data, Draw(1, position, 0)) for position in reversed(range(20))]
    assert all((a == b).all() for a, b in zip(first, reversed(again), strict=True))
    assert len({p.tobytes() for p in first}) > 10
    for other in (Draw(2, 3, 0), Draw(1, 3, 1)):
        assert other.uniform("area") != Draw(1, 3, 0).uniform("area")


def test_without_a_draw_there_is_no_augmentation():
    random = image_format(16, crop_area=0.3, flip_ratio=1.0, drop_ratio=1.0)
    plain = image_format(16)
    data = jpeg(40, 50)
    assert (random.decode(data) == plain.decode(data)).all()


def test_flips_and_drops_happen_as_often_as_asked():
    plain, data = image_format(16).decode(jpeg(16, 16)), jpeg(16, 16)
    flipped = image_format(16, flip_ratio=1.0).decode(data, Draw(0, 0, 0))
    assert (flipped == plain[:, :, ::-1]).all()
    some = image_format(16, drop_ratio=0.25)
    dropped = sum(some.decode(data, Draw(0, p, 0)).max() == 0 for p in range(400))
    assert 60 < dropped < 140


def test_random_crops_stay_inside_and_keep_the_share():
    crops = image_format(16, crop_area=0.25)
    for position in range(50):
        left, top, right, bottom = crops._box((40, 30), Draw(0, position, 0))
        assert 0 <= left < right <= 40 and 0 <= top < bottom <= 30
        assert right - left == pytest.approx(bottom - top)
        assert 0.25 * 900 - 1e-6 <= (right - left) ** 2 <= 900


@pytest.mark.parametrize("data", [b"", b"no image", jpeg(64, 64, "JPEG")[:300]])
def test_what_is_no_image_raises_a_known_error(data):
    with pytest.raises(DECODE_ERRORS):
        image_format(16).decode(data)


def test_an_image_far_too_large_raises_a_known_error(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DECODE_ERRORS, match="decompression bomb"):
        image_format(16).decode(jpeg(64, 64))


def test_a_random_crop_without_crop_is_refused():
    with pytest.raises(ValueError, match="crop_area below 1 goes with fit=crop"):
        ImageInputConfig(fit="pad", crop_area=0.5)
