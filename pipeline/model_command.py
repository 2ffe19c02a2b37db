"""`roseate model show`: what a model costs, as a table, JSON and a drawing; needs no weights and no GPU."""

import io
import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from data_prep.errors import ConfigError, Problem
from model.build import plan_flamingo
from model.config import ModelConfig
from model.draw import draw_model, short_count
from model.language import plan_language
from model.memory import STAGES, compute_memory
from model.plan import ModelPlan, compute_plan
from model.vision import plan_vision
from pipeline.config import RunConfig
from pipeline.optim import parameter_groups

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
    dtype = torch.float32 if config.train.precision == "fp32" else torch.bfloat16
    try:
        with _no_word_of_pixels():
            model = plan_flamingo(_without_native(config.model), losses=config.loss).to(dtype)
    except (ImportError, ValueError) as error:
        raise ConfigError([_problem(config.model, error)]) from None
    plan = compute_plan(model, num_tokens=num_tokens, num_images=num_images)
    memory = []
    for stage in STAGES:
        for world_size in world_sizes:
            figures = compute_memory(
                plan,
                stage=stage,
                world_size=world_size,
                num_32bit=_num_32bit(config, model),
                weight_bytes=dtype.itemsize,
                expert_parallel=config.engine.expert_parallel,
            )
            memory.append({"stage": stage, "world_size": world_size} | figures)
    summary = {
        "parts": {part.name: _figures(part) for part in [*plan.parts, plan.total]},
        "memory": memory,
        **{"num_tokens": num_tokens, "num_images": num_images},
        **{"optimizer": config.optim.name, "dtype": str(dtype).removeprefix("torch.")},
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
    how = f"{summary['optimizer']}, {summary['dtype']}"
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


def _without_native(config: ModelConfig) -> ModelConfig:
    """DeepSpeed's own experts are as large as ours and compute as much, but not on the meta device."""
    experts = config.experts.model_copy(update={"backend": "stacked"})
    return config.model_copy(update={"experts": experts})


@contextmanager
def _no_word_of_pixels() -> Iterator[None]:
    """A folder that is not there tells no mean of its pixels, and none is needed."""
    logger = logging.getLogger("model.vision")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _num_32bit(config: RunConfig, model: torch.nn.Module) -> int:
    groups = parameter_groups(model, config.optim.weight_decay)
    if config.optim.name == "adamw_8bit":
        groups = [group for group in groups if group["optim_bits"] == 32]
    return sum(parameter.numel() for group in groups for parameter in group["params"])


def _problem(config: ModelConfig, error: Exception) -> Problem:
    """Name the section that an error comes from: the tower that cannot be planned on its own either."""
    key, value = "model", "-"
    for name, plan, section in (
        ("model.vision", plan_vision, config.vision),
        ("model.language", plan_language, config.language),
    ):
        try:
            with _no_word_of_pixels():
                plan(section.path, section.architecture)
        except (ImportError, ValueError):
            key, value = f"{name}.path", section.path
            if section.architecture is not None:
                key = f"{name}.architecture.model_type"
                value = section.architecture.get("model_type")
            break
    rule, _, remedy = str(error).rpartition("; ")
    # transformers names every architecture that it knows.
    rule = textwrap.shorten(rule or str(error), 300, placeholder=" ...")
    return Problem(key, value, rule, remedy if "; " in str(error) else f"change {key}")


def _binary(size: float) -> str:
    unit, power = ("GiB", 30) if size >= 2**30 else ("MiB", 20)
    return f"{size / 2**power:,.2f} {unit}"
