"""`roseate checkpoint ...`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Config, Json, Overrides, write_text
from pipeline.config import load_config

checkpoint_app = typer.Typer(help="Look at the checkpoints of a run, and convert them.")
Processes = Annotated[int, typer.Option(min=1, help="ranks that the folder of DeepSpeed is of")]
Folder = Annotated[Path, typer.Argument(help="folder of DeepSpeed, with its file `latest`")]


@checkpoint_app.command("list", epilog="Example: roseate checkpoint list demo --verify")
def list_(
    config: Config,
    overrides: Overrides = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="read all and compare checksums")
    ] = False,
    json_path: Json = None,
) -> None:
    """What checkpoints a run has, and whether they are whole."""
    from pipeline.checkpoint.store import open_store
    from pipeline.commands.checkpoints import format_list, list_checkpoints

    run = load_config(config, overrides or ())
    rows = list_checkpoints(run, verify=verify)
    typer.echo(format_list(rows, open_store(run).url))
    if json_path:
        write_text(json.dumps(rows, indent=1), json_path)


@checkpoint_app.command(epilog="Example: roseate checkpoint weights demo trained.safetensors")
def weights(
    config: Config,
    file: Annotated[Path, typer.Argument(help="safetensors file to write")],
    overrides: Overrides = None,
) -> None:
    """The trained weights of the newest checkpoint as one safetensors file, fp32."""
    from pipeline.commands.checkpoints import write_weights

    typer.echo(json.dumps(write_weights(load_config(config, overrides or ()), file), indent=1))


@checkpoint_app.command(
    epilog="Example: roseate checkpoint to-deepspeed demo /tmp/folder --processes 2"
)
def to_deepspeed(
    config: Config, folder: Folder, overrides: Overrides = None, processes: Processes = 1
) -> None:
    """The newest checkpoint as a folder of DeepSpeed, for so many ranks."""
    from pipeline.commands.checkpoints import to_deepspeed as convert

    _convert(convert, "to-deepspeed", config, folder, overrides, processes)


@checkpoint_app.command(
    epilog="Example: roseate checkpoint from-deepspeed demo /tmp/folder name=again --processes 2"
)
def from_deepspeed(
    config: Config, folder: Folder, overrides: Overrides = None, processes: Processes = 1
) -> None:
    """A checkpoint of a run without any, made of a folder of DeepSpeed that so many ranks wrote."""
    from pipeline.commands.checkpoints import from_deepspeed as convert

    _convert(convert, "from-deepspeed", config, folder, overrides, processes)


def _convert(convert, name: str, config: str, folder: Path, overrides, processes: int) -> None:
    import os

    if processes > 1:
        from pipeline.launch import run_group

        arguments = ["checkpoint", name, config, str(folder), *(overrides or [])]
        raise typer.Exit(run_group(arguments, processes))
    summary = convert(load_config(config, overrides or ()), folder)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps(summary, indent=1))
