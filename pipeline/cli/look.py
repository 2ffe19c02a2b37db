"""The commands of `roseate` that only look: at a configuration, a model, the data of a step."""

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from data_prep.errors import ConfigError, Problem
from pipeline.cli.options import Config, Json, Overrides, write_text
from pipeline.config import RunConfig, flatten, load_config, load_ingest_config

config_app = typer.Typer(help="Look at a configuration without starting anything.")
model_app = typer.Typer(help="Look at a model without weights and without a GPU.")
data_app = typer.Typer(help="Look at the data as a step sees it.")


@config_app.command(
    epilog="Example: roseate config check demo --world-size 2 batch.global_size=100"
)
def check(
    config: Config,
    overrides: Overrides = None,
    world_size: Annotated[int, typer.Option(help="processes it will run on")] = 1,
) -> None:
    """Say whether a run could start, with every mistake at once."""
    from pipeline.run_check import check_ingest, check_run

    run = load_ingest_config(config, overrides or ())
    if isinstance(run, RunConfig):
        check_run(run, world_size)
        typer.echo(f"{config}: can start on {world_size} process(es)")
    else:
        check_ingest(run)
        typer.echo(f"{config}: can ingest")


@config_app.command(epilog="Example: roseate config show demo optim.lr=1e-3")
def show(config: Config, overrides: Overrides = None) -> None:
    """Print the whole configuration, defaults included."""
    run = load_ingest_config(config, overrides or ())
    typer.echo(yaml.safe_dump(run.model_dump(mode="json", by_alias=True), sort_keys=False))


@config_app.command(epilog="Example: roseate config diff demo openclipart")
def diff(first: Config, second: Config) -> None:
    """Print the keys in which two configurations differ."""
    one, two = flatten(load_config(first)), flatten(load_config(second))
    for key in sorted(set(one) | set(two)):
        if one.get(key) != two.get(key):
            typer.echo(f"{key}: {one.get(key)!r} -> {two.get(key)!r}")


@model_app.callback()
def model() -> None:
    """Look at a model without weights and without a GPU."""


@model_app.command("show", epilog="Example: roseate model show flamingo_80b --svg model.svg")
def show_model(
    config: Config,
    overrides: Overrides = None,
    world_size: Annotated[
        list[int] | None, typer.Option(help="GPUs, 8, 64 and 512 if not given; may be given again")
    ] = None,
    tokens: Annotated[int, typer.Option(help="text tokens of a row")] = 256,
    images: Annotated[int, typer.Option(help="images of a row")] = 1,
    svg: Annotated[Path | None, typer.Option(help="also draw the model into this file")] = None,
    json_path: Json = None,
) -> None:
    """Print parameters, FLOPs and activations of every part, and memory per GPU."""
    from pipeline.commands.show_model import WORLD_SIZES, format_summary, write_drawing
    from pipeline.commands.show_model import show_model as run_show

    run = load_config(config, overrides or ())
    plan, summary = run_show(run, world_size or WORLD_SIZES, num_tokens=tokens, num_images=images)
    typer.echo(format_summary(summary))
    if svg:
        write_drawing(plan, Path(config).stem, svg)
    if json_path:
        write_text(json.dumps(summary, indent=1), json_path)


@data_app.callback()
def data() -> None:
    """Look at the data as a step sees it."""


@data_app.command("show", epilog="Example: roseate data show demo --step 500 --html step500.html")
def show_data(
    config: Config,
    overrides: Overrides = None,
    position: Annotated[
        int | None, typer.Option(min=0, help="samples consumed before the batch, default 0")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="instead of --position: step x batch.global_size")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="only the first of the batch, default all")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="also write a page with tokens, targets and images")
    ] = None,
    json_path: Json = None,
) -> None:
    """Print the global batch that a step will see, or saw, on any number of processes."""
    from pipeline.commands.show_data import format_table, write_batch_page
    from pipeline.commands.show_data import show_data as run_show

    run = load_config(config, overrides or ())
    if position is not None and step is not None:
        rule = "is given instead of --step, not beside it"
        raise ConfigError([Problem("--position", position, rule, "leave one of them out")])
    start = position or 0 if step is None else step * run.batch.global_size
    shown = run_show(run, position=start, num_samples=samples)
    typer.echo(format_table(shown))
    if html:
        write_batch_page(shown, f"{run.name}: batch at position {start:,}", html)
        typer.echo(f"page {html}", err=True)
    if json_path:
        summary = {key: shown[key] for key in ("samples", "tokens", "padding_ratio", "sources")}
        write_text(json.dumps({"position": start} | summary, indent=1), json_path)


@data_app.command(epilog="Example: roseate data quarantine demo --most 50")
def quarantine(
    config: Config,
    overrides: Overrides = None,
    most: Annotated[int, typer.Option(min=1, help="samples listed")] = 20,
    json_path: Json = None,
) -> None:
    """List the samples of steps that were skipped because a loss or gradient was not finite."""
    from pipeline.healing.quarantine import summarise_quarantine

    summary = summarise_quarantine(load_config(config, overrides or ()).run_folder, most)
    typer.echo(json.dumps(summary, indent=1))
    if json_path:
        write_text(json.dumps(summary, indent=1), json_path)
