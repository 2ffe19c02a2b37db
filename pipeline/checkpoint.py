"""Checkpoints: written beside, checked, renamed when whole; the newest whole one is taken.

    checkpoints/step_000100/
        weights.safetensors   trainable weights by name, experts joined: what evaluation and export read
        engine/               DeepSpeed's own state of every rank: what an exact continuation reads
        state.json            step, MLflow run, layout, identity of the frozen towers, sha256 of every file

An exact continuation needs the layout (ranks, ZeRO strategy, expert parallelism) it was written with.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.errors import ConfigError, Problem
from pipeline.config import RunConfig
from pipeline.distributed import DistInfo
from pipeline.engine import gather_trainable

log = logging.getLogger("roseate")
STATE = "state.json"


def save_checkpoint(engine, folder: Path, state: dict, info: DistInfo, *, keep_last: int) -> Path:
    """Write checkpoint `state["step"]`; every rank must call it. Only whole ones ever carry its name."""
    final = folder / f"step_{state['step']:06d}"
    partial = folder / f".{final.name}.partial"
    if info.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    weights = gather_trainable(engine)
    engine.save_checkpoint(
        str(partial), tag="engine", save_latest=False, exclude_frozen_parameters=True
    )
    if info.is_main:
        save_file({n: w.contiguous() for n, w in weights.items()}, partial / "weights.safetensors")
    dist.barrier()
    if info.is_main:
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        sums = {str(p.relative_to(partial)): _sha256(p) for p in files}
        (partial / STATE).write_text(json.dumps({**state, "files": sums}, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in sorted(folder.glob("step_*"))[:-keep_last]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def find_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files all match their checksums; a broken one is passed over, loudly."""
    for path in sorted(folder.glob("step_*"), reverse=True):
        try:
            sums = json.loads((path / STATE).read_text())["files"]
            broken = [name for name, sha in sums.items() if _sha256(path / name) != sha]
        except (OSError, ValueError, KeyError) as error:
            broken = [f"{STATE}: {error}"]
        if not broken:
            return path
        log.warning("checkpoint %s is broken (%s); trying the one before", path, broken[0])
    return None


def read_state(path: Path) -> dict:
    return json.loads((path / STATE).read_text())


def read_weights(path: Path) -> dict[str, Tensor]:
    return load_file(path / "weights.safetensors")


def layout(config: RunConfig, world_size: int) -> dict:
    """What must be equal for an exact continuation."""
    return {
        "world_size": world_size,
        "strategy": config.engine.strategy,
        "expert_parallel": config.engine.expert_parallel,
        "optimizer": config.optim.name,
    }


def check_resume(path: Path, wanted: dict) -> None:
    """Refuse to go on from a checkpoint of another layout.

    Raises:
        ConfigError: naming each difference.
    """
    saved = read_state(path)["layout"]
    problems = [
        Problem(
            f"resume: {key}",
            value,
            f"equals that of the checkpoint {path} ({saved.get(key)})",
            "go on with the same layout, or start another run with name=...",
        )
        for key, value in wanted.items()
        if saved.get(key) != value
    ]
    if problems:
        raise ConfigError(problems)


def check_frozen(path: Path, frozen: dict[str, str]) -> None:
    """Refuse frozen towers that are not those the checkpoint was trained between.

    Raises:
        ConfigError: naming each tower that differs.
    """
    saved = read_state(path)["frozen"]
    problems = [
        Problem(
            key,
            f"weights {identity[:12]}",
            f"holds the weights that {path} was trained with ({saved[key][:12]})",
            "bring the old tower back, or train another run with name=...",
        )
        for key, identity in frozen.items()
        if saved[key] != identity
    ]
    if problems:
        raise ConfigError(problems)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
