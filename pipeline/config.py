"""One frozen RunConfig for a whole run, loaded from a preset or YAML file plus `section.key=value` overrides.

Imports neither torch nor ray, so that `roseate config check` answers at once on a login node.
"""

import copy
import difflib
import os
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from data_prep.config import IngestConfig, flatten_dict
from data_prep.curate.config import CurateConfig
from data_prep.errors import ConfigError, Problem
from model.config import LossConfig, ModelConfig, TowerConfig
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.data.config import DataConfig
from pipeline.engine.config import EngineConfig, OptimConfig, UnfreezeConfig
from pipeline.evaluation.config import EvaluationConfig
from pipeline.finetune.config import EarlyStopConfig, LoraConfig
from pipeline.healing.config import HealingConfig
from pipeline.section import Section
from pipeline.tracking.config import TrackingConfig

PRESETS = Path(__file__).parent / "presets"


class BatchConfig(Section):
    global_size: int = Field(64, ge=1, description="samples per optimizer step over all ranks")
    micro_size: int = Field(32, ge=1, description="samples per rank and forward pass")


class TrainConfig(Section):
    steps: int = Field(100, ge=1, description="optimizer steps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware multiplies bf16 matrices, else fp32"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations again in backward instead of keeping them"
    )
    start_from: str | None = Field(
        None,
        description="checkpoint whose weights a new run begins with: a preset, a YAML file, or the folder "
        "or URL of a checkpoint or a run",
    )
    trainable: Literal["all", "gates", "lora"] = Field(
        "all", description="the parts between the towers; their gates alone; or adapters alone"
    )
    lora: LoraConfig = Field(
        default_factory=LoraConfig, description="adapters, where trainable=lora"
    )
    early_stop: EarlyStopConfig | None = Field(
        None, description="ends the run when a held-out figure gets no better; null: never"
    )
    unfreeze: list[UnfreezeConfig] = Field(
        default_factory=list, description="parts of the towers that are trained later"
    )
    log_every_steps: int = Field(10, ge=1, description="steps between two points of the curves")
    validate_every_steps: int = Field(100, ge=1, description="steps between two held-out losses")
    validate_samples: int = Field(256, ge=1, description="held-out samples per validation")


class IngestRunConfig(Section):
    """A file that holds an ingest and no training."""

    root: str = Field(
        "runs", description="folder of the experiment; `{root}` in other values means this"
    )
    name: str = Field("ingest", description="this run")
    ingest: IngestConfig
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)


AnyConfig = TypeVar("AnyConfig", bound=IngestRunConfig)
AnySection = TypeVar("AnySection", bound=BaseModel)


class RunConfig(IngestRunConfig):
    """Everything a person decides about a run."""

    root: str = Field(description="folder of the experiment; `{root}` in other values means this")
    name: str = Field(description="this run; it lies in {root}/{name}")
    seed: int = Field(0, description="seed of the data order and of every initialisation")
    objective: Literal["flamingo", "contrastive", "language"] = Field(
        "flamingo", description="what is trained: the Flamingo, its image tower or language tower"
    )
    data: DataConfig
    curate: CurateConfig = Field(default_factory=CurateConfig)
    model: ModelConfig
    tower: TowerConfig = Field(default_factory=TowerConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    batch: BatchConfig = Field(default_factory=BatchConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    healing: HealingConfig = Field(default_factory=HealingConfig)
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
    return _load(_read(name), overrides, RunConfig)


def load_ingest_config(name: str, overrides: list[str] | tuple[str, ...] = ()) -> IngestRunConfig:
    """As `load_config`; also of a file that holds no training.

    Raises:
        ConfigError: with every mistake found in file and overrides.
    """
    values = _read(name)
    trains = not {"data", "model"}.isdisjoint(values)
    return _load(values, overrides, RunConfig if trains else IngestRunConfig)


def config_of(values: dict, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The configuration that a checkpoint was trained with, plus overrides.

    Raises:
        ConfigError: with every mistake found in both.
    """
    return _load(copy.deepcopy(values), overrides, RunConfig)


def _load(values: dict, overrides: list[str] | tuple[str, ...], kind: type[AnyConfig]) -> AnyConfig:
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
        config = kind.model_validate(values)
    except ValidationError as error:
        problems += [_as_problem(e) for e in error.errors()]
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    # After validation, since defaults may name the root too.
    filled = _substitute(
        config.model_dump(by_alias=True), "{root}", os.path.expanduser(config.root)
    )
    return kind.model_validate(filled)


def check_section(kind: type[AnySection], values: dict) -> AnySection:
    """A section out of what a command was given.

    Raises:
        ConfigError: with every mistake found.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_as_problem(e) for e in error.errors()]) from None


def flatten(value: BaseModel | dict) -> dict[str, object]:
    """Dotted name -> value of every leaf; the names used in YAML, overrides and MLflow."""
    return flatten_dict(value.model_dump(by_alias=True) if isinstance(value, BaseModel) else value)


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
