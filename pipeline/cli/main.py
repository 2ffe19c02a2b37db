"""The `roseate` command. The only place that prints results and chooses exit codes.

0 done, 1 rows of an ingest that do not add up, 2 configuration, 3 data budget spent, 4 the run cannot go
on by itself; 5 is the watchdog's.
"""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import ConfigError, DataBudgetError, IngestError
from pipeline.cli.checkpoint import checkpoint_app
from pipeline.cli.evaluate import evaluate
from pipeline.cli.export import export
from pipeline.cli.generate import chat, generate
from pipeline.cli.ingest import ingest_app
from pipeline.cli.label import label
from pipeline.cli.look import config_app, data_app, model_app
from pipeline.cli.options import Config, Json, Overrides, show_summary
from pipeline.cli.plan import plan
from pipeline.cli.tracking import tracking_app
from pipeline.config import load_config
from pipeline.errors import CannotGoOnError

app = typer.Typer(
    help="Pretrains Flamingo-style vision-language models, from URL tables to captions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(ingest_app, name="ingest")
app.add_typer(config_app, name="config")
app.add_typer(model_app, name="model")
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(tracking_app, name="tracking")
app.command(epilog="Example: roseate evaluate demo --suite captioning,perplexity")(evaluate)
app.command(epilog="Example: roseate generate demo photo.jpg other.png")(generate)
app.command(epilog="Example: roseate chat runs/demo/flamingo")(chat)
app.command(epilog="Example: roseate export runs/demo/flamingo exported/demo")(export)
app.command(epilog="Example: roseate label photos/train data/pets --class-form 'a {name}'")(label)
app.command(epilog="Example: roseate plan flamingo_9b_moe --nodes 8 --gpu h100-80gb")(plan)


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
    show_summary(summary, json_path)


@app.command(epilog="Example: roseate curate demo curate.same_text=20 --dry-run")
def curate(
    config: Config,
    overrides: Overrides = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes, one per CPU")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="write the page, and no selection")
    ] = False,
    json_path: Json = None,
) -> None:
    """Leave samples out of data.sources by rules, images that look alike above all. Run again to go on.

    Writes a selection beside each dataset's index, which data.sources.NAME.bitmaps names; no shard is
    rewritten. Under srun or torchrun the processes divide the shards.
    """
    from pipeline.commands.curate import curate as run_curate

    run = load_config(config, overrides or ())
    summary = run_curate(run, workers=workers, dry_run=dry_run)
    if summary is not None:
        show_summary(summary, json_path)


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
    from pipeline.features.cost import format_cost
    from pipeline.features.job import plan_features, write_features

    job = plan_features(load_config(config, overrides or ()), batch_size=batch_size)
    if job.rank == 0:
        device, precision = job.encoder.device.type, job.encoder.precision
        told = format_cost(job.cost, job.folder, device=device, precision=precision)
        typer.echo(told, err=True)
    summary = job.summary() if cost else write_features(job)
    if job.rank == 0:
        show_summary(summary, json_path)


@app.command(epilog="Example: roseate train demo --processes 2 optim.lr=5e-4")
def train(
    config: Config,
    overrides: Overrides = None,
    processes: Annotated[
        int, typer.Option(help="start so many processes here; not under srun or torchrun")
    ] = 1,
    fresh: Annotated[
        bool, typer.Option(help="start at step 0, and set checkpoints that exist aside")
    ] = False,
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
        show_summary(summary, json_path)


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
    """Entry point of the console script: ConfigError is exit code 2, DataBudgetError 3, the others 4."""
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
    except (CannotGoOnError, IngestError) as error:
        typer.echo(f"roseate: {error}", err=True)
        sys.exit(4)


def _quiet_libraries() -> None:
    """Keep other people's chatter out of the terminal; their warnings about what we do stay."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # Every layer of a tower by name, on every load.
    logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)
    # DeepSpeed's own calls under their old names, once per process.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def _show_recipe(
    preset: str, overrides: list[str] | None, summary: dict, json_path: Path | None
) -> None:
    from pipeline.report import headline, where_to_look

    show_summary(headline(summary), json_path)
    for line in where_to_look(load_config(preset, overrides or ()), summary):
        typer.echo(line, err=True)
