"""To and from the folder that DeepSpeed itself writes, for tools that read no other.

Such a folder fits one layout alone: as many ranks, the same stage, the same division of the experts.
"""

from pathlib import Path

import torch
import torch.distributed as dist

from data_prep.errors import ConfigError, Problem
from pipeline.engine.blockwise import BlockwiseOptimizer
from pipeline.engine.fragments import BLOCK, view_engine

OURS = "roseate"


def write_deepspeed(engine, folder: Path, state: dict) -> None:
    """`engine.save_checkpoint` under the tag step_NNNNNN, frozen weights left out; every rank calls it.

    Args:
        engine: as it is to be written.
        folder: gets the tag's folder and `latest`.
        state: of our checkpoint; goes into DeepSpeed's client state.
    """
    kept = _kept_blocks(engine, state["layout"]["stage"])
    engine.save_checkpoint(
        str(folder),
        tag=f"step_{state['step']:06d}",
        client_state={OURS: state, "kept_blocks": kept},
        exclude_frozen_parameters=True,
    )


def read_deepspeed(engine, stage: int, folder: Path, tag: str | None = None) -> dict:
    """Fill an engine of the layout that the folder was written with; every rank calls it.

    Args:
        engine: to fill.
        stage: of ZeRO.
        folder: of DeepSpeed.
        tag: in it; None for the one that `latest` names.

    Returns:
        the state of our checkpoint that it was made of; {} where DeepSpeed wrote it in a run without us.

    Raises:
        ConfigError: it is no such folder, or of another layout.
    """
    view = view_engine(engine, stage)
    if isinstance(view.inner, BlockwiseOptimizer):
        # Where blocks lie, before their moments come.
        kept = _client_state(engine, folder, tag).get("kept_blocks", {})
        view.inner.place(view.keys, view.fragments, view.widths, kept)
    try:
        path, client = engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False)
    except (RuntimeError, AssertionError, OSError, KeyError, ValueError) as error:
        raise _refused(folder, str(error)) from error
    if path is None:
        raise _refused(folder, "there is no checkpoint in it")
    return client.get(OURS, {})


def _client_state(engine, folder: Path, tag: str | None) -> dict:
    tag = tag or _latest(folder)
    files = sorted((folder / tag).glob("*model_states.pt"))
    if not files:
        raise _refused(folder, f"no *model_states.pt in {tag}")
    return torch.load(files[0], map_location="cpu", weights_only=False)


def _latest(folder: Path) -> str:
    try:
        return (folder / "latest").read_text().strip()
    except OSError:
        raise _refused(folder, "it has no file `latest`") from None


def _refused(folder: Path, why: str) -> ConfigError:
    rule = f"is a folder of DeepSpeed, written by the same layout ({why[:300]})"
    remedy = "give the folder that holds `latest`, and --processes, strategy and experts as then"
    return ConfigError([Problem("FOLDER", str(folder), rule, remedy)])


def _kept_blocks(engine, stage: int) -> dict[str, list[int]]:
    """Whole blocks that this rank keeps in 32 bits though their parameter has 8; all ranks' together."""
    view = view_engine(engine, stage)
    kept: dict[str, list[int]] = {}
    if isinstance(view.inner, BlockwiseOptimizer):
        for key in view.keys:
            for piece in view.inner.layouts[key].pieces:
                part = piece.fragment
                whole = part.start % BLOCK == 0 and part.numel <= BLOCK
                if piece.bits == 32 and whole:
                    kept.setdefault(part.name, []).append(part.start // BLOCK)
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, kept)
    joined: dict[str, list[int]] = {}
    for one in everyone:
        for name, blocks in one.items():
            joined.setdefault(name, []).extend(blocks)
    return joined
