"""Colour profiles: an image whose profile is not sRGB is converted to it, by Little CMS."""

import io
from collections.abc import Callable
from functools import lru_cache

from PIL import Image


def to_srgb(source: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """What converts the image, or a smaller copy, to sRGB; None where its profile asks for nothing.

    Profiles of grey images, of images with transparency and broken ones are passed over.
    """
    profile = source.info.get("icc_profile")
    if not profile or source.mode not in ("RGB", "CMYK") or _is_srgb(profile):
        return None
    transform = _transform(profile, source.mode)
    if transform is None:
        return None
    from PIL import ImageCms

    return lambda picture: ImageCms.applyTransform(picture, transform)


def _is_srgb(profile: bytes) -> bool:
    # Its description, as text or in UTF-16.
    return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str):
    from PIL import ImageCms  # what few need

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
