"""A trained run, opened by what a person calls it: a preset, a YAML file, or where its checkpoints are."""

from dataclasses import dataclass, replace

import torch

from data_prep.errors import ConfigError, Problem
from data_prep.storage import Folder
from model.flamingo import Flamingo
from model.lora import merge_adapters
from pipeline.checkpoint.container import BrokenCheckpointError, Checkpoint
from pipeline.checkpoint.resume import check_frozen
from pipeline.checkpoint.store import NAME, find_checkpoint, names, no_checkpoint, open_store
from pipeline.config import RunConfig, config_of, load_config, preset_names
from pipeline.distributed import DistInfo
from pipeline.engine.weights import load_trainable
from pipeline.finetune.start import choose_trainable, take_weights
from pipeline.objectives import FlamingoObjective


@dataclass
class Trained:
    """A Flamingo with the weights of a checkpoint, in eval mode.

    Attributes:
        config: of the run, as the checkpoint or the file has it, overrides applied.
        checkpoint: whose weights these are.
        objective: the model, and how texts and images are read for it.
    """

    config: RunConfig
    checkpoint: Checkpoint
    objective: FlamingoObjective

    @property
    def step(self) -> int:
        return self.checkpoint.state["step"]

    @property
    def run_id(self) -> str | None:
        """MLflow run that trained it."""
        return self.checkpoint.state["run_id"]


def find_trained(
    name: str, overrides: list[str] | tuple[str, ...] = (), info: DistInfo | None = None
) -> tuple[RunConfig, Checkpoint]:
    """Configuration and checkpoint that a command's CHECKPOINT argument means; loads no weights.

    Args:
        name: a preset or a YAML file: the newest whole checkpoint of that run; or a folder or URL
            (``s3://...``): of one checkpoint, of checkpoints, or of a run.
        overrides: ``section.key=value``, over the file or over what the checkpoint was trained with.
        info: the ranks, all of which must call it; None for one process alone.

    Raises:
        ConfigError: there is no whole checkpoint, or an override is wrong.
    """
    if name in preset_names() or name.endswith((".yaml", ".yml")):
        config = load_config(name, overrides)
        found = find_checkpoint(open_store(config), info)
        if found is None:
            raise no_checkpoint(config)
        return config, found
    name = name.rstrip("/")
    above, _, last = name.rpartition("/")
    if NAME.fullmatch(last):
        try:
            found = Checkpoint(Folder(above or ".", "CHECKPOINT"), last)
            found.verify()
        except (BrokenCheckpointError, OSError) as error:
            rule = f"is a whole checkpoint: {error}"
            raise ConfigError(
                [Problem("CHECKPOINT", name, rule, "name another one, or the run's folder")]
            ) from None
    else:
        stores = [Folder(f"{name}/checkpoints", "CHECKPOINT"), Folder(name, "CHECKPOINT")]
        store = next((s for s in stores if names(s)), None)
        found = find_checkpoint(store, info) if store else None
        if found is None:
            rule = (
                "is a preset, a YAML file, or the folder of a checkpoint or of a run that has one"
            )
            remedy = f"train first: roseate train CONFIG; presets: {', '.join(preset_names())}"
            raise ConfigError([Problem("CHECKPOINT", name, rule, remedy)])
    return config_of(found.state["config"], overrides), found


def find_base(name: str, info: DistInfo | None = None) -> Checkpoint:
    """The checkpoint that `train.start_from` names.

    Raises:
        ConfigError: there is none.
    """
    try:
        return find_trained(name, (), info)[1]
    except ConfigError as error:
        problem = replace(error.problems[0], key="train.start_from", value=name)
        raise ConfigError([problem]) from None


def find_start(checkpoint: Checkpoint, info: DistInfo | None = None) -> Checkpoint | None:
    """Where the weights are that a run began with and does not train; None where it trains all of them.

    Raises:
        ConfigError: there is no such checkpoint any more.
    """
    state = checkpoint.state
    if state.get("start_from") is None or not state.get("start_needed", True):
        return None
    return find_base(state["start_from"], info)


def take_start(model: Flamingo, base: Checkpoint, info: DistInfo | None = None) -> set[str]:
    """Weights to begin with into a model that is not divided yet: those of a checkpoint and of its own start.

    Returns:
        their names.

    Raises:
        ConfigError: names or shapes are not those of the model, or a start is not there any more.
    """
    before = find_start(base, info)
    names = take_start(model, before, info) if before else set()
    take_weights(model, base)
    return names | set(base.shapes)


def open_trained(
    name: str,
    overrides: list[str] | tuple[str, ...] = (),
    *,
    info: DistInfo | None = None,
    dtype: torch.dtype = torch.float32,
) -> Trained:
    """`find_trained` and `load_trained`.

    Raises:
        ConfigError: as of both.
    """
    return load_trained(*find_trained(name, overrides, info), info=info, dtype=dtype)


def load_trained(
    config: RunConfig,
    checkpoint: Checkpoint,
    *,
    info: DistInfo | None = None,
    dtype: torch.dtype = torch.float32,
) -> Trained:
    """The model with a checkpoint's weights, on the rank's device.

    Raises:
        ConfigError: it is no whole model, or a frozen tower is missing or has changed since.
    """
    if config.objective != "flamingo":
        rule, remedy = "is a run with objective flamingo", "name the run of the whole model"
        raise ConfigError([Problem("CHECKPOINT", str(checkpoint), rule, remedy)])
    objective = FlamingoObjective(config, dtype)
    check_frozen(checkpoint, objective.frozen)
    if base := find_start(checkpoint, info):
        take_start(objective.model, base, info)
    choose_trainable(objective.model, config)
    load_trainable(objective.model, checkpoint.weights())
    if config.train.trainable == "lora":
        merge_adapters(objective.model)
    objective.model.to((info or DistInfo.one()).device).eval()
    return Trained(config, checkpoint, objective)
