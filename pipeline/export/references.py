"""Frozen towers that an exported model names instead of holding them."""

from pathlib import Path

import torch
from torch import nn

from data_prep.errors import ConfigError, Problem
from model.language import load_language
from model.vision import load_vision
from pipeline.trained import Trained

PARTS = {"vision": "media_encoders.image.tower.", "language": "language."}
_LOADERS = {"vision": load_vision, "language": load_language}


def find_references(trained: Trained) -> dict[str, dict[str, str]]:
    """Path and sha256 of both towers.

    Raises:
        ConfigError: a tower is in no folder of transformers' kind, or some of it was trained.
    """
    found, problems = {}, []
    remedy = "export with --towers include"
    for part, prefix in PARTS.items():
        key = f"model.{part}.path"
        path = getattr(trained.config.model, part).path
        if not Path(path).is_dir():
            rule = "is a folder of transformers, for --towers reference"
            problems.append(Problem(key, path, rule, remedy))
        elif changed := _changed(trained.objective.model.get_submodule(prefix[:-1]), part, path):
            rule = f"holds what was trained with it; {len(changed)} weights were trained, e.g. {changed[0]}"
            problems.append(Problem(key, path, rule, remedy))
        else:
            sha256 = trained.objective.frozen[key]
            found[part] = {"path": str(Path(path).absolute()), "sha256": sha256}
    if problems:
        raise ConfigError(problems)
    return found


def _changed(tower: nn.Module, part: str, path: str) -> list[str]:
    """Weights that differ from those in the folder: unfrozen in training, or adapters merged into them."""
    dtype = next(tower.parameters()).dtype
    source = _LOADERS[part](path, dtype=dtype).state_dict()
    own = tower.state_dict()
    return sorted(name for name in own if not torch.equal(own[name].cpu(), source[name]))
