"""What `roseate checkpoint` does: list, check, take the weights out, convert from and to DeepSpeed's folder."""

import io
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.errors import ConfigError, Problem
from pipeline.checkpoint.container import BrokenCheckpointError, Checkpoint
from pipeline.checkpoint.deepspeed_folder import read_deepspeed, write_deepspeed
from pipeline.checkpoint.resume import engine_state, export_weights
from pipeline.checkpoint.store import find_checkpoint, names, no_checkpoint, open_store
from pipeline.config import RunConfig
from pipeline.distributed import start_group, stop_group
from pipeline.healing.watchdog import Watchdog
from pipeline.run import Run
from pipeline.tracking.tracker import NullTracker


def list_checkpoints(config: RunConfig, *, verify: bool = False) -> list[dict]:
    """What is there, newest first; with `verify` every file is read and compared with its checksum."""
    store, rows = open_store(config), []
    for name in names(store):
        row = {"name": name, "problem": None}
        try:
            found = Checkpoint(store, name)
            state = found.state
            row |= {
                "step": state["step"],
                "bytes": sum(file["bytes"] for file in state["files"].values()),
                "parameters": sum(math.prod(shape) for shape in found.shapes.values()),
                "held_out_loss": state.get("held_out_loss"),
                "position": state["data"]["position"],
                "layout": state["layout"],
                "run_id": state["run_id"],
            }
            if verify:
                found.verify()
        except (BrokenCheckpointError, OSError, ValueError, KeyError) as error:
            row["problem"] = str(error)
        rows.append(row)
    return rows


def format_list(rows: list[dict], folder: str) -> str:
    """The rows as a table of plain text."""
    if not rows:
        return f"no checkpoints in {folder}"
    table = Table(title=folder)
    for column in ("step", "samples", "MiB", "held-out loss", "written by", "state"):
        table.add_column(column, justify="right" if column != "state" else "left")
    for row in rows:
        if "step" not in row:
            table.add_row(row["name"], "", "", "", "", "broken")
            continue
        layout, loss = row["layout"], row["held_out_loss"]
        ranks = f"{layout['world_size']} ranks, ZeRO-{layout['stage']}"
        ranks += f", experts/{layout['expert_parallel']}" if layout["expert_parallel"] > 1 else ""
        table.add_row(
            str(row["step"]),
            f"{row['position']:,}",
            f"{row['bytes'] / 2**20:,.1f}",
            "" if loss is None else f"{loss:.4f}",
            ranks,
            "broken" if row["problem"] else "whole",
        )
    console = Console(file=io.StringIO(), width=110, color_system=None)
    console.print(table)
    problems = [f"{row['name']}: {row['problem']}" for row in rows if row["problem"]]
    return "\n".join([console.file.getvalue().rstrip(), *problems])


def write_weights(config: RunConfig, path: Path) -> dict:
    """The trained weights of the newest whole checkpoint as one safetensors file.

    Raises:
        ConfigError: the run has no checkpoint.
    """
    found = find_checkpoint(open_store(config))
    if found is None:
        raise no_checkpoint(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    export_weights(found, path)
    return {"checkpoint": str(found), "step": found.step, "file": str(path)}


def to_deepspeed(config: RunConfig, folder: Path) -> dict:
    """The newest whole checkpoint as a folder of DeepSpeed, for as many ranks as call this.

    Raises:
        ConfigError: the run has no checkpoint, or does not go on from it.
    """
    info = start_group()
    try:
        with Watchdog(info, config.healing.hang_seconds, config.run_folder) as watchdog:
            run = Run(config, info, watchdog, NullTracker(), fresh=False)
            if run.found is None:
                raise no_checkpoint(config)
            loop = run.build_loop()
            state = dict(run.found.state) | {"layout": loop.layout()}
            write_deepspeed(loop.engine, folder, state)
            return {"step": loop.step, "folder": str(folder), "world_size": info.world_size}
    finally:
        stop_group()


def from_deepspeed(config: RunConfig, folder: Path, tag: str | None = None) -> dict:
    """A checkpoint of the run, made of a folder of DeepSpeed; for as many ranks as wrote that.

    Raises:
        ConfigError: it is no such folder, of another layout, or the run has checkpoints already.
    """
    info = start_group()
    try:
        with Watchdog(info, config.healing.hang_seconds, config.run_folder) as watchdog:
            run = Run(config, info, watchdog, NullTracker(), fresh=False)
            if run.found is not None:
                rule = f"has no checkpoints yet, and it has {run.found}"
                raise ConfigError([Problem("name", config.name, rule, "set another name=...")])
            loop = run.build_loop()
            state = read_deepspeed(loop.engine, loop.stage, folder, tag)
            if not state:
                loop.step = loop.engine.global_steps
                loop.data = loop.data.advanced(loop.engine.global_samples)
                state = loop.state()
            state |= {"layout": loop.layout(), "engine": engine_state(loop.engine)}
            state.pop("files", None)
            loop.step = state["step"]
            loop.write(state)
            run.writer.settle(survive=False)
            return {"step": loop.step, "folder": run.store.url, "world_size": info.world_size}
    finally:
        stop_group()
