"""Trainable weights by the names of the undivided model: gathered from an engine, put into a model."""

import torch
from torch import Tensor, nn

from data_prep.errors import ConfigError, Problem
from model.tokens import whole
from pipeline.distributed import DistInfo, sum_tensor
from pipeline.engine.fragments import view_engine


def gather_trainable(engine, stage: int, info: DistInfo) -> dict[str, Tensor]:
    """All masters, fp32, whole on every rank; every rank must call it. For models that fit one process."""
    view = view_engine(engine, stage)
    weights = {name: torch.zeros(shape).view(-1) for name, shape in sorted(view.shapes.items())}
    for part in view.owned(info.rank, info.world_size, stage=stage):
        values = view.flats[part.flat].narrow(0, part.offset, part.numel)
        weights[part.name].narrow(0, part.start, part.numel).copy_(values)
    return {name: sum_tensor(w, info).view(view.shapes[name]) for name, w in weights.items()}


def load_trainable(
    module: nn.Module,
    weights: dict[str, Tensor],
    *,
    key: str = "model",
    where: str = "the checkpoint",
) -> None:
    """Put trained weights into a model: those of its trainable parameters, and of unfrozen ones.

    Args:
        module: not divided, but for towers that ZeRO-3 divided while they were loaded; every rank then calls.
        weights: by name.
        key: of the setting that is wrong where they do not fit.
        where: they come from.

    Raises:
        ConfigError: names or shapes are not those of the model.
    """
    own = dict(module.named_parameters())
    wrong = sorted(set(weights) - set(own))
    wrong += sorted(n for n, p in own.items() if p.requires_grad and n not in weights)
    shapes = {n: getattr(p, "ds_shape", p.shape) for n, p in own.items()}
    wrong += [n for n, w in weights.items() if n in own and shapes[n] != w.shape]
    if wrong:
        raise ConfigError(
            [
                Problem(
                    key,
                    f"{len(wrong)} parameters, first {wrong[0]}",
                    f"{where} and the configured model have the same parameters",
                    "use the config.yaml beside the checkpoint",
                )
            ]
        )
    for name, weight in weights.items():
        with whole(own[name]), torch.no_grad():
            own[name].copy_(weight)
