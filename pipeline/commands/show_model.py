"""`roseate model show`: what a model costs, as a table, JSON and a drawing; needs no weights and no GPU."""

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.errors import ConfigError, Problem
from model.draw import draw_model, short_count
from model.plan import ModelPlan, compute_plan
from pipeline.config import RunConfig
from pipeline.plan.memory import Trained, compute_standing
from pipeline.plan.model import DTYPES, build_planned
from pipeline.plan.parameters import list_parameters
from pipeline.plan.strategy import Strategy

STAGES = (0, 1, 2, 3)
WORLD_SIZES = (8, 64, 512)
MEMORY = ("weights", "frozen", "gradients", "master", "states", "total")


def show_model(
    config: RunConfig,
    world_sizes: Sequence[int] = WORLD_SIZES,
    *,
    num_tokens: int = 256,
    num_images: int = 1,
) -> tuple[ModelPlan, dict]:
    """Compute plan and summary.

    Args:
        config: of the run; its towers are read from their configs alone.
        world_sizes: numbers of GPUs to divide over.
        num_tokens: text tokens of a row.
        num_images: images of a row.

    Returns:
        (plan, the summary that `--json` writes; FLOPs per text token, activations in bytes per row,
        memory in bytes per GPU).

    Raises:
        ConfigError: a tower cannot be planned, or a count makes no sense.
    """
    counts = {"--world-size": min(world_sizes, default=1), "--images": num_images}
    problems = [
        Problem(name, count, "is at least 1", "give a number from 1 on")
        for name, count in counts.items()
        if count < 1
    ]
    if num_tokens < num_images:
        rule = "a row has at least one token for every image"
        problems.append(Problem("--tokens", num_tokens, rule, f"give {num_images} or more"))
    if problems:
        raise ConfigError(problems)
    precision = "bf16" if config.train.precision == "auto" else config.train.precision
    model = build_planned(config, DTYPES[precision])
    plan = compute_plan(model, num_tokens=num_tokens, num_images=num_images)
    memory = []
    for stage in STAGES:
        for world_size in world_sizes:
            parameters = list_parameters(model, config, world_size)
            trained = Trained(parameters, world_size, precision, config.optim.name)
            # Small parameters that stay whole are a matter of the strategy file.
            standing = compute_standing(trained, Strategy(f"zero{stage}", stage, persistent=0))
            memory.append({"stage": stage, "world_size": world_size} | _columns(standing))
    summary = {
        "parts": {part.name: _figures(part) for part in [*plan.parts, plan.total]},
        "memory": memory,
        **{"num_tokens": num_tokens, "num_images": num_images},
        **{"optimizer": config.optim.name, "precision": precision},
    }
    return plan, summary


def format_summary(summary: dict) -> str:
    """The summary as two tables of plain text."""
    images = f"{summary['num_images']} image" + ("s" if summary["num_images"] != 1 else "")
    parts = Table(title=f"rows of {summary['num_tokens']} text tokens and {images}")
    parts.add_column("part")
    for name in ("trainable", "frozen", "FLOPs/token forward", "backward", "activations/row"):
        parts.add_column(name, justify="right")
    for name, part in summary["parts"].items():
        if name == "total":
            parts.add_section()
        flops = (short_count(part[key]) for key in ("forward_flops", "backward_flops"))
        counts = (f"{part[key]:,}" for key in ("trainable", "frozen"))
        parts.add_row(name, *counts, *flops, _binary(part["activation_bytes"]))
    how = f"{summary['optimizer']}, {summary['precision']}"
    memory = Table(title=f"memory per GPU, {how}, without activations and buffers")
    for name in ("ZeRO", "GPUs", *MEMORY):
        memory.add_column(name, justify="right")
    stage = None
    for row in summary["memory"]:
        if stage not in (None, row["stage"]):
            memory.add_section()
        stage = row["stage"]
        sizes = (_binary(row[key]) for key in MEMORY)
        memory.add_row(str(stage), str(row["world_size"]), *sizes)
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(parts)
    console.print(memory)
    return console.file.getvalue().rstrip()


def write_drawing(plan: ModelPlan, title: str, path: Path) -> None:
    """Write the SVG file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(draw_model(plan, title))


def _figures(part: object) -> dict:
    return {key: value for key, value in asdict(part).items() if key != "name"}


def _columns(standing: dict[str, float]) -> dict[str, float]:
    """The moments of either width together, and the sum."""
    figures = standing | {"states": standing["moments_8bit"] + standing["moments_32bit"]}
    figures = {name: figures[name] for name in MEMORY[:-1]}
    return figures | {"total": sum(figures.values())}


def _binary(size: float) -> str:
    unit, power = ("GiB", 30) if size >= 2**30 else ("MiB", 20)
    return f"{size / 2**power:,.2f} {unit}"
