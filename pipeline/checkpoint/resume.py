"""Going on from a checkpoint: what must be as it was, and filling an engine of any layout."""

from pathlib import Path

from data_prep.errors import ConfigError, Problem
from pipeline.checkpoint.container import Checkpoint
from pipeline.config import RunConfig, flatten
from pipeline.engine.fragments import EngineView, publish_masters, view_engine
from pipeline.engine.logical import put_chunks

# Settings whose change is told; the others do not shape what is learnt.
TOLD = ("batch.", "data.sources.", "engine.", "loss.", "optim.", "train.steps", "train.unfreeze")


def engine_state(engine) -> dict:
    """What an engine counts, and its loss scale; all of it small."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    numbers = vars(scaler) if scaler is not None else {}
    return {
        "global_steps": engine.global_steps,
        "global_samples": engine.global_samples,
        "skipped_steps": engine.skipped_steps,
        "loss_scaler": {
            k: v for k, v in numbers.items() if isinstance(v, int | float | bool | None)
        },
    }


def check_resume(found: Checkpoint, config: RunConfig, frozen: dict[str, str]) -> None:
    """Refuse what a run cannot go on with.

    Ranks, ZeRO stage, expert parallelism, accumulation, batch, schedule and weights may change. The
    optimizer may change from 8 to 32 bits.

    Args:
        found: to go on from.
        config: as it is now.
        frozen: identity of the frozen towers as they are now.

    Raises:
        ConfigError: naming each difference.
    """
    problems = []
    before, now = found.state["config"]["optim"]["name"], config.optim.name
    if now not in (before, {"adamw_8bit": "adamw"}.get(before)):
        rule = f"has the moments that {found} holds ({before})"
        remedy = f"set optim.name={before}, or start another run with name=..."
        problems.append(Problem("optim.name", now, rule, remedy))
    problems += _other_towers(found, frozen)
    if problems:
        raise ConfigError(problems)


def check_frozen(found: Checkpoint, frozen: dict[str, str]) -> None:
    """Refuse frozen towers that are not those the checkpoint was trained between.

    Raises:
        ConfigError: naming each tower that differs.
    """
    if problems := _other_towers(found, frozen):
        raise ConfigError(problems)


def _other_towers(found: Checkpoint, frozen: dict[str, str]) -> list[Problem]:
    problems = []
    for key, identity in frozen.items():
        saved = found.state["frozen"].get(key, "none")
        if saved != identity:
            rule = f"holds the weights that {found} was trained with ({saved[:12]})"
            remedy = "bring the old tower back, or train another run with name=..."
            problems.append(Problem(key, f"weights {identity[:12]}", rule, remedy))
    return problems


def check_parameters(found: Checkpoint, view: EngineView, later: set[str]) -> None:
    """Refuse a checkpoint of another model.

    Args:
        found: to go on from.
        view: of the engine.
        later: logical parameters that were frozen when a run began, so that a checkpoint may lack them.

    Raises:
        ConfigError: parameters lack, are too many, or have other shapes.
    """
    wrong = sorted(set(found.shapes) - set(view.shapes))
    wrong += sorted(set(view.shapes) - set(found.shapes) - later)
    wrong += [n for n, s in view.shapes.items() if n in found.shapes and found.shapes[n] != s]
    if wrong:
        raise ConfigError(
            [
                Problem(
                    "model",
                    f"{len(wrong)} parameters, first {wrong[0]}",
                    f"has the parameters that {found} holds",
                    "use the configuration in its state.json, or start another run with name=...",
                )
            ]
        )


def changed_settings(found: Checkpoint, config: RunConfig) -> dict[str, tuple]:
    """Settings that shape the training and are not as they were: key to (before, now)."""
    before, now = (
        flatten(found.state["config"]),
        flatten(config.model_dump(mode="json", by_alias=True)),
    )
    keys = sorted(k for k in {*before, *now} if k.startswith(TOLD))
    return {k: (before.get(k), now.get(k)) for k in keys if before.get(k) != now.get(k)}


def restore_engine(engine, stage: int, found: Checkpoint, later: set[str] = frozenset()) -> None:
    """Fill an engine; bit-equal in any layout. Every rank must call it.

    Raises:
        ConfigError: the checkpoint is of another model.
    """
    view = view_engine(engine, stage)
    check_parameters(found, view, later)
    put_chunks(view, found.read, found.steps)
    publish_masters(engine, stage)
    counted = found.state["engine"]
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, counted[name])
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for name, value in counted["loss_scaler"].items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)
    found.close()


def export_weights(found: Checkpoint, path: Path) -> None:
    """Write the trained weights as one safetensors file, fp32, in the shapes of the undivided model."""
    from safetensors.torch import save_file

    save_file({n: w.contiguous() for n, w in found.weights().items()}, path)
