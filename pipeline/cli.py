"""The `roseate` command. The only place that prints results and chooses exit codes: 0, 2 config, 3 data."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import ConfigError, DataBudgetError
from pipeline.cli_look import config_app, data_app, model_app
from pipeline.cli_options import Config, Json, Overrides, write_text
from pipeline.config import load_config

app = typer.Typer(
    help="Pretrains Flamingo-style vision-language models, from URL tables to captions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(config_app, name="config")
app.add_typer(model_app, name="model")
app.add_typer(data_app, name="data")


@app.command(epilog="Example: roseate ingest demo ingest.fetch.concurrency=128")
def ingest(
    config: Config,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="one source of ingest.sources")] = None,
    json_path: Json = None,
) -> None:
    """Fetch the images of the URL tables and write dataset folders. Run again to go on."""
    from data_prep.ray_runner import run_ingest

    run = load_config(config, overrides or ())
    summary = run_ingest(run.ingest, only=only, progress=sys.stderr.isatty())
    _show(summary, json_path)


@app.command(epilog="Example: roseate index /data/cc12m --output index/cc12m")
def index(
    tars: Annotated[str, typer.Argument(help="folder or URL (s3://...) of WebDataset tars")],
    output: Annotated[Path | None, typer.Option(help="folder to write, TARS by default")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes, one per CPU")] = None,
    again: Annotated[bool, typer.Option("--again", help="the tars have changed")] = False,
    json_path: Json = None,
) -> None:
    """Make a dataset folder of tars that others made; nothing is copied. Run again to go on."""
    from data_prep.index_folder import index_folder
    from data_prep.index_progress import IndexProgress

    with IndexProgress() as advance:
        summary = index_folder(tars, output, workers=workers, again=again, advance=advance)
    _show(summary, json_path)


@app.command(epilog="Example: roseate features demo data.features=/fast/features --cost")
def features(
    config: Config,
    overrides: Overrides = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images encoded together")] = 64,
    cost: Annotated[bool, typer.Option("--cost", help="only say what it costs and gains")] = False,
    json_path: Json = None,
) -> None:
    """Run the frozen image tower once over all training images, for data.features. Run again to go on.

    Under srun or torchrun the processes divide the shards.
    """
    from pipeline.feature_cost import format_cost
    from pipeline.features_command import plan_features, write_features

    job = plan_features(load_config(config, overrides or ()), batch_size=batch_size)
    if job.rank == 0:
        device, precision = job.encoder.device.type, job.encoder.precision
        told = format_cost(job.cost, job.folder, device=device, precision=precision)
        typer.echo(told, err=True)
    summary = job.summary() if cost else write_features(job)
    if job.rank == 0:
        _show(summary, json_path)


@app.command(epilog="Example: roseate train demo --processes 2 optim.lr=5e-4")
def train(
    config: Config,
    overrides: Overrides = None,
    processes: Annotated[
        int, typer.Option(help="start so many processes here; not under srun or torchrun")
    ] = 1,
    fresh: Annotated[bool, typer.Option(help="start at step 0 whatever checkpoints exist")] = False,
    json_path: Json = None,
) -> None:
    """Train one run; it goes on from its newest checkpoint."""
    run = load_config(config, overrides or ())
    if processes > 1:
        from pipeline.launch import run_group
        from pipeline.run_check import check_run

        check_run(run, processes)
        arguments = ["train", config, *(overrides or [])]
        arguments += ["--fresh"] if fresh else []
        arguments += ["--json", str(json_path)] if json_path else []
        raise typer.Exit(run_group(arguments, processes))
    from pipeline.train import train as run_train

    summary = run_train(run, fresh=fresh)
    if os.environ.get("RANK", "0") == "0":
        _show(summary, json_path)


@app.command(epilog="Example: roseate evaluate demo evaluation.max_samples=64")
def evaluate(config: Config, overrides: Overrides = None, json_path: Json = None) -> None:
    """Caption the held-out images, with the image and with it zeroed; figures go to the MLflow run."""
    from pipeline.evaluate import evaluate as run_evaluate

    _show(run_evaluate(load_config(config, overrides or ())), json_path)


@app.command(epilog="Example: roseate generate demo photo.jpg other.png")
def generate(
    config: Config,
    images: Annotated[list[Path], typer.Argument(help="image files, then any section.key=value")],
    json_path: Json = None,
) -> None:
    """Caption image files with the newest checkpoint of a run."""
    from pipeline.generate import generate as run_generate

    files = [i for i in images if "=" not in str(i)]
    overrides = [str(i) for i in images if "=" in str(i)]
    _show({"captions": run_generate(load_config(config, overrides), files)}, json_path)


@app.command(epilog="Example: roseate demo root=/tmp/demo")
def demo(
    overrides: Overrides = None,
    scenes: Annotated[int, typer.Option(help="training scenes drawn")] = 6000,
    held_out: Annotated[int, typer.Option(help="held-out scenes drawn")] = 256,
    towers_only: Annotated[bool, typer.Option(help="stop after the two towers")] = False,
    json_path: Json = None,
) -> None:
    """The whole way on drawn scenes: web, ingest, two towers, Flamingo on 2 processes, captions."""
    from pipeline.recipes import run_demo

    summary = run_demo(overrides or [], scenes, held_out, towers_only=towers_only)
    _show_recipe("demo", overrides, summary, json_path)


@app.command(epilog="Example: roseate openclipart --limit 200 train.steps=20")
def openclipart(
    overrides: Overrides = None,
    limit: Annotated[int | None, typer.Option(help="only the first rows of the table")] = None,
    processes: Annotated[int, typer.Option(help="training processes")] = 2,
    json_path: Json = None,
) -> None:
    """The whole way on the 8,121 OpenClipart drawings with SmolLM2-135M and EfficientNet-Lite0."""
    from pipeline.recipes import run_openclipart

    summary = run_openclipart(overrides or [], limit, processes)
    _show_recipe("openclipart", overrides, summary, json_path)


def main() -> None:
    """Entry point of the console script: ConfigError is exit code 2, DataBudgetError 3."""
    _quiet_libraries()
    try:
        app()
    except ConfigError as error:
        # Ranks of one machine share a terminal and mostly a mistake: the first tells it whole.
        rank = int(os.environ.get("RANK", "0"))
        told = f"rank {rank}: {error.problems[0].key} is refused" if rank else str(error)
        typer.echo(f"roseate: {told}", err=True)
        sys.exit(2)
    except DataBudgetError as error:
        typer.echo(f"roseate: {error}", err=True)
        sys.exit(3)


def _quiet_libraries() -> None:
    """Keep other people's chatter out of the terminal; their warnings about what we do stay."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # DeepSpeed's own calls under their old names, once per process.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def _show_recipe(
    preset: str, overrides: list[str] | None, summary: dict, json_path: Path | None
) -> None:
    from pipeline.report import headline, where_to_look

    _show(headline(summary), json_path)
    for line in where_to_look(load_config(preset, overrides or ())):
        typer.echo(line, err=True)


def _show(summary: dict, json_path: Path | None) -> None:
    text = json.dumps(summary, indent=1, default=str)
    typer.echo(text)
    if json_path:
        write_text(text, json_path)
