"""What the commands of `roseate` share: their common options, and writing where these ask for it."""

import json
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[str, typer.Argument(help="a preset (demo, openclipart, ...) or a YAML file")]
CheckpointName = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="a preset or YAML file (the run's newest), or the folder or URL of a checkpoint or a run",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value", metavar="[SECTION.KEY=VALUE ...]")
]
Json = Annotated[Path | None, typer.Option("--json", help="also write the summary to this file")]


def write_text(text: str, path: Path) -> None:
    """Write a file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def show_summary(summary: dict, json_path: Path | None) -> None:
    """Print a summary as JSON, and write it where `--json` says."""
    text = json.dumps(summary, indent=1, default=str)
    typer.echo(text)
    if json_path:
        write_text(text, json_path)
