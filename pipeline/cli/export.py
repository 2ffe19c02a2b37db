"""`roseate export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import CheckpointName, Json, Overrides, show_summary


class Towers(StrEnum):
    """Values of --towers."""

    include = "include"
    reference = "reference"


class Precision(StrEnum):
    """Values of --precision."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Experts(StrEnum):
    """Values of --experts."""

    keep = "keep"
    merge = "merge"


def export(
    checkpoint: CheckpointName,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="to be made")],
    overrides: Overrides = None,
    towers: Annotated[
        Towers, typer.Option(help="their weights in DIR, or where they are, checked at load")
    ] = Towers.include,
    precision: Annotated[Precision, typer.Option(help="of the weights")] = Precision.fp32,
    experts: Annotated[
        Experts, typer.Option(help="merge: one feed-forward a block, an approximation")
    ] = Experts.keep,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace DIR")] = False,
    json_path: Json = None,
) -> None:
    """Write a folder that transformers' Auto classes load, with nothing of this project installed."""
    from pipeline.export.export import check_target, export_model
    from pipeline.trained import open_trained

    check_target(folder, overwrite=overwrite)
    typer.echo(f"roseate: opening {checkpoint}", err=True)
    trained = open_trained(checkpoint, overrides or ())
    typer.echo(f"roseate: writing step {trained.step} to {folder}", err=True)
    summary = export_model(
        trained,
        folder,
        towers=towers.value,
        precision=precision.value,
        experts=experts.value,
        overwrite=overwrite,
    )
    if towers is Towers.reference:
        typer.echo("roseate: the towers are named by paths of this machine", err=True)
    show_summary(summary, json_path)
