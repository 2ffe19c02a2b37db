"""From a decoded image to one of the size that is stored, reading its pixels as few times as can be."""

from PIL import Image

from data_prep.config import ImageConfig
from data_prep.image.colour import to_srgb
from data_prep.image.pixels import flattener

_STRIP_PIXELS = 1 << 20
# A whole factor of the shrinking is done by averaging, as long as twice the target is left for the
# filter: that is seen in nothing and costs half. benchmarks/LOG.md has what other filters give.
_LEFT_FOR_FILTER = 2
_SHRINK, _ENLARGE = Image.Resampling.HAMMING, Image.Resampling.BICUBIC


def resized_size(size: tuple[int, int], image: ImageConfig) -> tuple[int, int]:
    """Size of an image of `size` after the resize, before it is cropped or padded."""
    width, height = size
    if image.mode == "untouched":
        scale = 1.0
    elif image.mode == "center_crop":
        scale = image.size / min(width, height)
    elif image.mode == "border":
        scale = image.size / max(width, height)
    else:
        scale = min(1.0, image.size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize_on_white(source: Image.Image, target: tuple[int, int]) -> Image.Image:
    """The image as sRGB (or, where all of it is grey, as L) of the size `target`, on white.

    A JPEG that is far too large is decoded at a half, a quarter or an eighth. What is decoded is
    worked off in strips: a picture of 80 megapixels is in memory once, and not again for each
    conversion.
    """
    source.draft(None, (_LEFT_FOR_FILTER * target[0], _LEFT_FOR_FILTER * target[1]))
    source.load()
    convert = to_srgb(source)
    flatten = flattener(source) if convert is None else lambda strip: strip.copy()
    width, height = source.size
    factors = (width // (_LEFT_FOR_FILTER * target[0]), height // (_LEFT_FOR_FILTER * target[1]))
    factor = max(1, min(factors))
    picture = _reduced(source, flatten, factor)
    if picture.size != target:
        box = (0, 0, width / factor, height / factor)
        resampling = _SHRINK if target <= picture.size else _ENLARGE
        picture = picture.resize(target, resampling, box=box)
    return picture if convert is None else convert(picture)


def fit(picture: Image.Image, image: ImageConfig) -> Image.Image:
    """Crops or pads the resized, upright picture to the square that is stored, where it is one."""
    if image.mode == "center_crop":
        left, top = (picture.width - image.size) // 2, (picture.height - image.size) // 2
        return picture.crop((left, top, left + image.size, top + image.size))
    if image.mode == "border":
        canvas = Image.new(picture.mode, (image.size, image.size), "white")
        left, top = (image.size - picture.width) // 2, (image.size - picture.height) // 2
        canvas.paste(picture, (left, top))
        return canvas
    return picture


def _reduced(source: Image.Image, flatten, factor: int) -> Image.Image:
    width, height = source.size
    if width * height <= _STRIP_PIXELS:
        return flatten(source).reduce(factor)
    step = factor * max(1, _STRIP_PIXELS // (width * factor))
    picture = None
    for top in range(0, height, step):
        strip = flatten(source.crop((0, top, width, min(height, top + step)))).reduce(factor)
        if picture is None:
            picture = Image.new(strip.mode, (-(-width // factor), -(-height // factor)))
        picture.paste(strip, (0, top // factor))
    return picture
