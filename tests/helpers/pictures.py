"""Pictures that no other test has."""

import numpy as np
from PIL import Image


def noise_picture(width: int = 40, height: int = 40, channels: int = 3) -> Image.Image:
    """Random colours, others each time."""
    shape = (height, width, channels)
    return Image.fromarray(np.random.default_rng().integers(0, 256, shape, dtype=np.uint8))
