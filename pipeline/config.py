"""One frozen RunConfig for a whole run, loaded from a preset or YAML file plus `section.key=value` overrides.

Imports neither torch nor ray, so that `roseate config check` answers at once on a login node.
"""

import difflib
import os
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from data_prep.config import IngestConfig
from data_prep.errors import ConfigError, Problem
from model.config import LossConfig, ModelConfig, TowerConfig
from pipeline.data.config import DataConfig
from pipeline.section import Section

PRESETS = Path(__file__).parent / "presets"


class BatchConfig(Section):
    global_size: int = Field(64, ge=1, description="samples per optimizer step over all ranks")
    micro_size: int = Field(32, ge=1, description="samples per rank and forward pass")


class OptimConfig(Section):
    name: Literal["adamw", "adamw_8bit"] = Field("adamw_8bit", description="optimizer")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(20, ge=0, description="steps of linear warm-up")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")
    weight_decay: float = Field(0.1, ge=0, description="on matrices outside the resampler only")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.98, ge=0, lt=1, description="decay of the second moment")
    clip_norm: float = Field(1.0, gt=0, description="largest global gradient norm")


class TrainConfig(Section):
    steps: int = Field(100, ge=1, description="optimizer steps")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the hardware multiplies bf16 matrices, else fp32"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations again in backward instead of keeping them"
    )
    log_every_steps: int = Field(10, ge=1, description="steps between two points of the curves")
    validate_every_steps: int = Field(100, ge=1, description="steps between two held-out losses")
    validate_samples: int = Field(256, ge=1, description="held-out samples per validation")


class EngineConfig(Section):
    strategy: str = Field("zero2", description="name of a file in deepspeed_configs/")
    expert_parallel: int = Field(1, ge=1, description="ranks over which the experts are divided")


class CheckpointConfig(Section):
    every_steps: int = Field(500, ge=1, description="steps between two checkpoints")
    keep_last: int = Field(2, ge=1, description="complete checkpoints kept")


class TrackingConfig(Section):
    uri: str = Field("sqlite:///{root}/mlflow.db", description="MLflow tracking URI; empty: none")
    experiment: str = Field("roseate", description="MLflow experiment")


class EvaluationConfig(Section):
    max_samples: int = Field(256, ge=1, description="held-out samples captioned")
    max_new_tokens: int = Field(24, ge=1, description="tokens generated per caption")
    attributes: Literal["scenes"] | None = Field(
        None, description="grammar by which captions are compared attribute by attribute"
    )
    pictures: int = Field(16, ge=0, description="held-out pictures with captions sent to MLflow")


class RunConfig(Section):
    """Everything a person decides about a run."""

    root: str = Field(description="folder of the experiment; `{root}` in other values means this")
    name: str = Field(description="this run; it lies in {root}/{name}")
    seed: int = Field(0, description="seed of the data order and of every initialisation")
    objective: Literal["flamingo", "contrastive", "language"] = Field(
        "flamingo", description="what is trained: the Flamingo, its image tower or language tower"
    )
    ingest: IngestConfig
    data: DataConfig
    model: ModelConfig
    tower: TowerConfig = Field(default_factory=TowerConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    batch: BatchConfig = Field(default_factory=BatchConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @property
    def run_folder(self) -> Path:
        return Path(self.root) / self.name


def preset_names() -> list[str]:
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def load_config(name: str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Preset name or YAML path, plus `section.key=value` overrides, as one checked RunConfig.

    Raises:
        ConfigError: with every mistake found in file and overrides.
    """
    values = _read(name)
    problems = []
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            problems.append(
                Problem(
                    text, None, "an override is written section.key=value", "e.g. optim.lr=1e-4"
                )
            )
            continue
        try:
            # A value that begins with {root} is a path, though YAML would begin a mapping there.
            text = not value or value.startswith("{root}")
            _assign(values, key.split("."), value if text else yaml.safe_load(value))
        except (TypeError, yaml.YAMLError):
            problems.append(
                Problem(key, value, "no such place in the configuration", _suggest(key.split(".")))
            )
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems += [_as_problem(e) for e in error.errors()]
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    # After validation, since defaults may name the root too.
    filled = _substitute(
        config.model_dump(by_alias=True), "{root}", os.path.expanduser(config.root)
    )
    return RunConfig.model_validate(filled)


def flatten(value: BaseModel | dict, prefix: str = "") -> dict[str, object]:
    """Dotted name -> value of every leaf; the names used in YAML, overrides and MLflow."""
    data = value.model_dump(by_alias=True) if isinstance(value, BaseModel) else value
    flat: dict[str, object] = {}
    for key, item in data.items():
        if isinstance(item, dict):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _read(name: str) -> dict:
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        close = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            [
                Problem(
                    "CONFIG",
                    name,
                    "is the name of a preset or the path of a YAML file",
                    f"{hint}presets: {', '.join(preset_names())}",
                )
            ]
        )
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(
            [Problem("CONFIG", str(path), f"must be valid YAML: {error}", "mend the file")]
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            [Problem("CONFIG", str(path), "holds sections with keys", "see config show demo")]
        )
    parent = values.pop("extends", None)
    return _merge(_read(parent), values) if parent else values


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _assign(values: dict, keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise TypeError(key)
    values[keys[-1]] = value


def _substitute(value: object, mark: str, text: str) -> object:
    if isinstance(value, str):
        return value.replace(mark, text)
    if isinstance(value, dict):
        return {k: _substitute(v, mark, text) for k, v in value.items()}
    if isinstance(value, list):
        return [_substitute(v, mark, text) for v in value]
    return value


def _as_problem(error: dict) -> Problem:
    keys = [str(k) for k in error["loc"]]
    rule = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return Problem(".".join(keys), error["input"], "there is no such key", _suggest(keys))
    value = None if error["type"] == "missing" else error["input"]
    return Problem(".".join(keys), value, rule, f"roseate config show demo lists {keys[0]}")


def _suggest(keys: list[str]) -> str:
    """The nearest existing key, from the fields of the section that `keys` names."""
    section: type[BaseModel] = RunConfig
    for key in keys[:-1]:
        field = section.model_fields.get(key)
        if field is None or not isinstance(field.annotation, type):
            break
        if not issubclass(field.annotation, BaseModel):
            break
        section = field.annotation
    names = [field.alias or name for name, field in section.model_fields.items()]
    close = difflib.get_close_matches(keys[-1], names, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(names)}"
