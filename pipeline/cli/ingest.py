"""`roseate ingest ...`."""

import json
from typing import Annotated

import typer
from typer.core import TyperGroup

from pipeline.cli.options import Config, Json, Overrides, show_summary, write_text
from pipeline.config import load_ingest_config


class _RunByDefault(TyperGroup):
    """`roseate ingest CONFIG` is `roseate ingest run CONFIG`."""

    def parse_args(self, ctx, args):
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


ingest_app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Fetch the images of the URL tables and write dataset folders.",
    epilog="Example: roseate ingest demo, which is short for roseate ingest run demo",
)


@ingest_app.command(epilog="Example: roseate ingest demo ingest.download.contact=ops@example.org")
def run(
    config: Config,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="one source of ingest.sources")] = None,
    json_path: Json = None,
) -> None:
    """Fetch the images of the URL tables and write dataset folders. Run again to go on."""
    from pipeline.commands.ingest import ingest

    show_summary(ingest(load_ingest_config(config, overrides or ()), only=only), json_path)


@ingest_app.command(epilog="Example: roseate ingest status runs/demo/data --verify")
def status(
    folder: Annotated[
        str,
        typer.Argument(
            help="ingest.output, or one source's folder in it; path or URL", metavar="DIR"
        ),
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="read the tars and compare their sha256")
    ] = False,
    json_path: Json = None,
) -> None:
    """How the rows ended; exit code 1 where not every row of the table has one status."""
    from data_prep.ingest.status import format_status, read_status

    found = read_status(folder, verify=verify)
    typer.echo(format_status(found))
    if json_path:
        rows = [vars(source) | {"adds_up": source.adds_up} for source in found]
        write_text(json.dumps(rows, indent=1), json_path)
    if not all(source.adds_up for source in found):
        raise typer.Exit(1)
