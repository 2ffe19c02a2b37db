"""What a fine-tuning begins with, and which parameters it trains."""

import re

from data_prep.errors import ConfigError, Problem
from model.flamingo import Flamingo
from model.lora import add_adapters
from pipeline.checkpoint.container import Checkpoint
from pipeline.config import RunConfig
from pipeline.engine.weights import load_trainable

GATES = re.compile(r"gated_blocks\.\d+\.(attn|ff)_gate")


def take_weights(model: Flamingo, base: Checkpoint) -> None:
    """Weights of a checkpoint into a model that is not divided yet; nothing else of it is taken.

    Raises:
        ConfigError: names or shapes are not those of the model.
    """
    load_trainable(model, base.weights(), key="train.start_from", where=str(base))


def choose_trainable(model: Flamingo, config: RunConfig) -> None:
    """Freeze what is not to be trained; add adapters where these are.

    Raises:
        ConfigError: the adapters' expression matches nothing.
    """
    train = config.train
    if train.trainable == "gates":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(GATES.fullmatch(name) is not None)
    elif train.trainable == "lora":
        try:
            lora = train.lora
            add_adapters(
                model,
                lora.targets,
                rank=lora.rank,
                alpha=lora.alpha,
                dropout=lora.dropout,
                seed=config.seed,
            )
        except ValueError as error:
            rule = f"matches linear layers: {error}"
            problem = Problem("train.lora.targets", train.lora.targets, rule, "correct it")
            raise ConfigError([problem]) from None
