"""Random pixels in every kind of file, against numpy's reading of what they should look like."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_prep.config import FilterConfig, ImageConfig
from data_prep.image.encode import encode_image
from data_prep.schema import Status

RNG = np.random.default_rng()


def pack(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(data, **settings):
    """Pixels as stored, losslessly and at full size."""
    settings = {"size": 256, "format": "png", **settings}
    encoded = encode_image(data, ImageConfig(**settings), FilterConfig())
    assert encoded.status is Status.OK, encoded.error
    image = Image.open(io.BytesIO(encoded.data))
    assert image.size == (encoded.width, encoded.height)
    return np.asarray(image.convert("RGB")).astype(int)


def random_pixels(channels, high=256):
    height, width = RNG.integers(20, 60, 2)
    return RNG.integers(0, high, (height, width, channels)).astype(np.uint8)


def on_white(colour, alpha):
    alpha = alpha[..., None].astype(float)
    return colour * alpha / 255 + 255 - alpha


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_rgb(kind):
    pixels = random_pixels(3)
    data = pack(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(stored(data), pixels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha(kind):
    pixels = random_pixels(2)
    expected = on_white(pixels[..., :1].repeat(3, axis=2), pixels[..., 1])
    data = pack(Image.frombytes("LA", pixels.shape[1::-1], pixels.tobytes()), kind)
    assert np.abs(stored(data) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_rgb_with_alpha(kind):
    pixels = random_pixels(4)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = pack(Image.fromarray(pixels), kind, **options)
    assert np.abs(stored(data) - on_white(pixels[..., :3], pixels[..., 3])).max() <= 1


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("grey", [False, True])
def test_palette(colours, transparent, grey):
    indices = random_pixels(1, colours)[..., 0]
    palette = RNG.integers(0, 256, (colours, 3)).astype(np.uint8)
    if grey:
        palette[:] = palette[:, :1]
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    alpha = RNG.integers(0, 256, colours).astype(np.uint8)
    options = {"transparency": alpha.tobytes()} if transparent else {}
    expected = on_white(palette, alpha if transparent else np.full(colours, 255))[indices]
    assert np.abs(stored(pack(image, **options)) - expected).max() <= 1


@pytest.mark.parametrize("transparent", [False, True])
def test_gif_shows_its_first_frame(transparent):
    first, second = random_pixels(1, 16)[..., 0], None
    second = RNG.integers(0, 16, first.shape).astype(np.uint8)
    palette = RNG.integers(0, 256, (16, 3)).astype(np.uint8)
    frames = [Image.fromarray(indices, "P") for indices in (first, second)]
    for frame in frames:
        frame.putpalette(palette.tobytes())
    options = {"transparency": 3} if transparent else {}
    data = pack(frames[0], "GIF", save_all=True, append_images=frames[1:], **options)
    expected = palette.astype(int)[first]
    if transparent:
        expected[first == 3] = 255
    assert np.array_equal(stored(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_animations_show_their_first_frame(kind):
    first = random_pixels(3)
    frames = [Image.fromarray(p) for p in (first, RNG.integers(0, 256, first.shape, np.uint8))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = pack(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(stored(data), first)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_one_bit(kind):
    bits = random_pixels(1, 2)[..., 0].astype(bool)
    expected = bits[..., None].repeat(3, axis=2) * 255
    assert np.array_equal(stored(pack(Image.fromarray(bits), kind)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey(kind):
    height, width = RNG.integers(20, 60, 2)
    pixels = RNG.integers(0, 65536, (height, width)).astype(np.uint16)
    expected = (pixels >> 8)[..., None].repeat(3, axis=2)
    assert np.array_equal(stored(pack(Image.fromarray(pixels), kind)), expected)


@pytest.mark.parametrize(("channels", "code"), [(3, 2), (4, 6)])
def test_sixteen_bit_colour(channels, code):
    """Pillow writes no such file, so it is put together here; also with its rows interlaced."""
    height, width = RNG.integers(20, 60, 2).tolist()
    pixels = RNG.integers(0, 65536, (height, width, channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    interlaced = b"".join(
        b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx] if row.size)
        for y, x, dy, dx in (
            *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
            *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
        )
    )
    high = (pixels >> 8).astype(int)
    expected = high if channels == 3 else on_white(high[..., :3], high[..., 3])
    for method, body in ((0, rows), (1, interlaced)):
        head = (
            width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, code, 0, 0, method])
        )
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
        data = b"\x89PNG\r\n\x1a\n" + b"".join(
            len(c).to_bytes(4, "big") + name + c + zlib.crc32(name + c).to_bytes(4, "big")
            for name, c in chunks
        )
        assert np.abs(stored(data) - expected).max() <= 1


def smooth():
    """What JPEG keeps: [40, 56, 3] of slow changes."""
    coarse = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((56, 40), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg(progressive, subsampling):
    pixels = smooth()
    options = {"quality": 98, "progressive": progressive, "subsampling": subsampling}
    difference = stored(pack(Image.fromarray(pixels), "JPEG", **options)) - pixels
    assert np.abs(difference).mean() < 3


def test_jpeg_grey():
    pixels = smooth()[..., 0]
    difference = stored(pack(Image.fromarray(pixels), "JPEG", quality=98)) - pixels[..., None]
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind):
    """In a JPEG they are stored inverted, as Adobe does."""
    cmyk = np.concatenate([smooth(), smooth()[..., :1]], axis=2)
    light = 255 - cmyk.astype(float)
    expected = light[..., :3] * light[..., 3:] / 255
    options = {"quality": 98} if kind == "JPEG" else {}
    data = pack(Image.frombytes("CMYK", (56, 40), cmyk.tobytes()), kind, **options)
    assert np.abs(stored(data) - expected).mean() < 3


def test_ycbcr_and_lab():
    pixels = smooth()
    image = Image.fromarray(pixels)
    assert np.abs(stored(pack(image.convert("YCbCr"), "TIFF")) - pixels).mean() < 3
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    in_lab = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    assert np.abs(stored(pack(in_lab, "TIFF")) - pixels).mean() < 3


def swapped_profile():
    """An RGB profile in which red and blue have changed places: nothing looks like it by chance."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    at = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return (
        bytes(profile)
        .replace(b"sRGB", b"test")
        .replace("sRGB".encode("utf-16-be"), b"\0t\0e\0s\0t")
    )


def test_a_profile_is_applied_and_dropped_and_that_of_srgb_passed_over():
    pixels = random_pixels(3)
    image = Image.fromarray(pixels)
    data = pack(image, icc_profile=swapped_profile())
    assert np.abs(stored(data) - pixels[..., ::-1]).max() <= 3
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile"):
        assert np.array_equal(stored(pack(image, icc_profile=profile)), pixels)
    settings = {"size": 256, "format": "png", "skip_reencode": True}
    encoded = encode_image(data, ImageConfig(**settings), FilterConfig())
    assert encoded.data != data and "icc_profile" not in Image.open(io.BytesIO(encoded.data)).info


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_untouched(kind):
    pixels = random_pixels(3)
    data = pack(Image.fromarray(pixels), kind)
    config = ImageConfig(mode="untouched", size=8, format="png")
    encoded = encode_image(data, config, FilterConfig())
    assert (encoded.height, encoded.width) == pixels.shape[:2]
    if kind in ("PNG", "JPEG", "WEBP"):
        assert encoded.data == data
        assert encoded.format == {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[kind]
    else:
        assert encoded.format == "png"
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(stored(encoded.data), shown)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_untouched_is_decoded_to_its_end(kind):
    data = pack(Image.fromarray(random_pixels(3)), kind)
    cut = data[: int(len(data) * 0.7)]
    encoded = encode_image(cut, ImageConfig(mode="untouched"), FilterConfig())
    assert encoded.status is Status.UNDECODABLE


def test_a_side_too_long_for_the_format_is_told():
    data = pack(Image.new("1", (17_000, 1)), "TIFF")
    config = ImageConfig(mode="untouched", format="webp")
    encoded = encode_image(data, config, FilterConfig(max_aspect_ratio=1e6))
    assert encoded.status is Status.TOO_MANY_PIXELS
    assert encoded.error == "a side of 17000 pixels cannot be stored as webp"


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
@pytest.mark.parametrize("mode", ["keep_ratio", "center_crop", "border"])
def test_skip_reencode_keeps_what_would_not_change(kind, name, mode):
    def kept(image, **options):
        data = pack(image, kind, **options)
        encoded = encode_image(data, config, FilterConfig())
        assert encoded.status is Status.OK and encoded.format == name
        return encoded.data == data

    config = ImageConfig(mode=mode, size=32, format=name, skip_reencode=True)
    assert kept(Image.new("RGB", (32, 32), "red"))
    assert not kept(Image.new("RGB", (33, 33), "red"))
    assert kept(Image.new("RGB", (32, 20))) == (mode == "keep_ratio")
    assert kept(Image.new("RGB", (20, 20))) == (mode == "keep_ratio")
    exif = Image.Exif()
    exif[0x0112] = 3
    assert not kept(Image.new("RGB", (32, 32)), exif=exif)
    if kind != "JPEG":
        assert not kept(Image.new("RGBA", (32, 32)))
        frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
        assert not kept(frames[0], save_all=True, append_images=frames[1:])
    if kind != "WEBP":
        assert not kept(Image.new("L", (32, 32)))
    other = ImageConfig(mode=mode, size=32, format="png" if name != "png" else "jpg")
    data = pack(Image.new("RGB", (32, 32)), kind)
    assert encode_image(data, other, FilterConfig()).format == other.format


def test_a_jpeg_far_too_large_is_scaled_as_it_is_decoded(monkeypatch):
    sizes = []
    original = Image.Image.reduce
    monkeypatch.setattr(
        Image.Image,
        "reduce",
        lambda self, factor: sizes.append(self.size) or original(self, factor),
    )
    pixels = np.asarray(Image.fromarray(smooth()).resize((896, 640), Image.Resampling.BICUBIC))
    data = pack(Image.fromarray(pixels), "JPEG", quality=95)
    small = stored(data, size=56)
    assert max(sizes) == (112, 80)
    box = pixels.reshape(40, 16, 56, 16, 3).mean(axis=(1, 3))
    assert np.abs(small - box).mean() < 3
