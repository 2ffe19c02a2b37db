"""`roseate plan`: memory, time and cost of a run before it is started."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Config, Json, Overrides, write_text
from pipeline.config import load_config
from pipeline.plan.gpus import GPUS


def plan(
    config: Config,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(help="machines")] = 1,
    gpu: Annotated[str, typer.Option(help=f"one of: {', '.join(GPUS)}")] = "h100-80gb",
    gpus_per_node: Annotated[
        int | None, typer.Option(help="in each machine, as is usual for the GPU if not given")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(
            help="share of the GPU's dense peak that the model's FLOPs reach; assumed to be 0.35 if "
            "not given, less what activation checkpointing computes again"
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="dollars for a GPU and hour; an assumption if not given")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="text tokens of a sample, data.max_text_tokens if not given")
    ] = None,
    images: Annotated[int, typer.Option(help="images of a sample")] = 1,
    svg: Annotated[Path | None, typer.Option(help="also draw the memory into this file")] = None,
    json_path: Json = None,
) -> None:
    """Say whether a run fits, how long it takes and what it costs, without weights and without a GPU."""
    from pipeline.plan.draw import draw_run
    from pipeline.plan.options import PlanOptions
    from pipeline.plan.run import plan_run
    from pipeline.plan.table import format_run, summarise

    options = PlanOptions(gpu, nodes, gpus_per_node, mfu, price_per_hour, tokens, images)
    run = plan_run(load_config(config, overrides or ()), options)
    typer.echo(format_run(run))
    if svg:
        write_text(draw_run(run, Path(config).stem), svg)
    if json_path:
        write_text(json.dumps(summarise(run), indent=1), json_path)
