"""The model of a run on the meta device: without weights, and without towers that are yet to be trained."""

import logging
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from data_prep.errors import ConfigError, Problem
from model.build import plan_flamingo
from model.config import ModelConfig
from model.contrastive import build_vision
from model.flamingo import Flamingo
from model.language import build_language, plan_language
from model.vision import plan_vision
from pipeline.config import RunConfig
from pipeline.engine.unfreeze import unfreeze
from pipeline.formats import VOCAB_SIZE

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_planned(config: RunConfig, dtype: torch.dtype) -> Flamingo:
    """Build the model of a run on the meta device, in the precision of the run.

    What train.unfreeze lets be trained at any time is trained: that is when a run takes most.

    Raises:
        ConfigError: a tower cannot be planned, or an entry of train.unfreeze names nothing.
    """
    section = _without_native(config.model)
    try:
        with _no_word_of_pixels():
            model = plan_flamingo(_with_towers(section, config), losses=config.loss).to(dtype)
    except (ImportError, ValueError) as error:
        raise ConfigError([_problem(section, error)]) from None
    unfreeze(model, config.train.unfreeze, config.train.steps)
    return model


def coming_towers(config: RunConfig) -> list[str]:
    """Keys of the towers that this configuration is to train first, in the sizes of section `tower`."""
    return [
        f"model.{name}.path"
        for name in ("vision", "language")
        if _is_to_come(getattr(config.model, name), config.root)
    ]


def _is_to_come(section: object, root: str) -> bool:
    """The folder that `roseate train demo_vision` or `demo_language` will write is not there yet."""
    path = Path(section.path)
    if section.architecture is not None or (path / "config.json").is_file():
        return False
    return path.parent == Path(root)


def _with_towers(section: ModelConfig, config: RunConfig) -> ModelConfig:
    small = {
        "vision": lambda: (
            {"image_size": config.tower.image_size} | build_vision(config.tower).config.to_dict()
        ),
        "language": lambda: build_language(config.tower, VOCAB_SIZE).config.to_dict(),
    }
    for name, build in small.items():
        tower = getattr(section, name)
        if _is_to_come(tower, config.root):
            with torch.device("meta"):
                tower = tower.model_copy(update={"architecture": build()})
            section = section.model_copy(update={name: tower})
    return section


def _without_native(config: ModelConfig) -> ModelConfig:
    """DeepSpeed's own experts are as large as ours and compute as much, but not on the meta device."""
    experts = config.experts.model_copy(update={"backend": "stacked"})
    return config.model_copy(update={"experts": experts})


@contextmanager
def _no_word_of_pixels() -> Iterator[None]:
    """A folder that is not there tells no mean of its pixels, and none is needed."""
    logger = logging.getLogger("model.vision")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _problem(config: ModelConfig, error: Exception) -> Problem:
    """Name the section that an error comes from: the tower that cannot be planned on its own either."""
    key, value = "model", "-"
    for name, plan, section in (
        ("model.vision", plan_vision, config.vision),
        ("model.language", plan_language, config.language),
    ):
        try:
            with _no_word_of_pixels():
                plan(section.path, section.architecture)
        except (ImportError, ValueError):
            key, value = f"{name}.path", section.path
            if section.architecture is not None:
                key = f"{name}.architecture.model_type"
                value = section.architecture.get("model_type")
            break
    rule, _, remedy = str(error).rpartition("; ")
    # transformers names every architecture that it knows.
    rule = textwrap.shorten(rule or str(error), 300, placeholder=" ...")
    return Problem(key, value, rule, remedy if "; " in str(error) else f"change {key}")
