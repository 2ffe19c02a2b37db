"""The frozen image tower as the writer of features wants it: pixels in, float16 out; and how long it takes."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.errors import ConfigError, Problem
from model.identity import frozen_identity
from model.vision import load_vision
from pipeline.config import RunConfig
from pipeline.data.batch import normalise
from pipeline.data.image import ImageFormat
from pipeline.engine.start import DTYPES, resolve_precision
from pipeline.formats import flamingo_image


@dataclass(frozen=True)
class TowerEncoder:
    """The tower as the writer wants it.

    Attributes:
        tower: a `model.vision_encoder.VisionEncoder`.
        image: what it takes.
        device: it is on.
        precision: of its weights and of the pixels.
        path: setting `model.vision.path`, for messages.
    """

    tower: nn.Module
    image: ImageFormat
    device: torch.device
    precision: str
    path: str

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 ``[N, 3, S, S]`` to features float16 ``[N, P, width]``.

        Raises:
            ConfigError: a feature is not finite in float16.
        """
        return self._half(self.compute(pixels)).cpu().numpy()

    def compute(self, pixels: np.ndarray) -> Tensor:
        """Features as the tower gives them, when they are there."""
        shown = torch.from_numpy(pixels).to(self.device)
        dtype = DTYPES[self.precision]
        features = self.tower(normalise(shown, self.image.mean, self.image.std, dtype))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return features

    def _half(self, features: Tensor) -> Tensor:
        half = features.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            largest = float(features.float().abs().max())
            rule = f"gives features that float16 holds, up to 65504; one is {largest:g}"
            raise ConfigError(
                [Problem("model.vision.path", self.path, rule, "leave data.features at null")]
            )
        return half


def load_encoder(config: RunConfig, local_rank: int) -> tuple[TowerEncoder, str]:
    """The tower of a run on its device, in the run's precision; and its identity.

    Raises:
        ConfigError: it cannot be loaded.
    """
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # Where SLURM shows each task one GPU alone, that GPU is number 0 of the task.
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
    precision, path = resolve_precision(config.train.precision, device), config.model.vision.path
    try:
        tower = load_vision(path, dtype=DTYPES[precision]).to(device)
        identity = frozen_identity(path)
    except (ImportError, ValueError) as error:
        rule = f"is an image tower that loads: {error}"
        remedy = "correct the path; pretrain a tower of your own first"
        raise ConfigError([Problem("model.vision.path", path, rule, remedy)]) from None
    image = flamingo_image(config, tower)
    return TowerEncoder(tower, image, device, precision, path), identity


def time_tower(encoder: TowerEncoder, batch_size: int) -> tuple[np.ndarray, float]:
    """Features float16 ``[P, width]`` of a black image, and seconds for each image of a batch."""
    size = encoder.image.size
    pixels = np.zeros((batch_size, 3, size, size), np.uint8)
    black = encoder(pixels[:1])[0]
    encoder.compute(pixels)  # the first batch of a size also loads and chooses kernels
    began = time.perf_counter()
    encoder.compute(pixels)
    return black, (time.perf_counter() - began) / batch_size
