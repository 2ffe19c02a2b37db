"""`roseate tracking`: what a run has told MLflow, and what it has not yet."""

import os
from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import ConfigError, Problem
from pipeline.cli.options import Json, show_summary

tracking_app = typer.Typer(
    help="What runs have told MLflow, and what is still on disk.", no_args_is_help=True
)
Place = Annotated[Path, typer.Argument(help="folder of a run, or of an experiment")]


@tracking_app.command(epilog="Example: roseate tracking status runs/demo/flamingo")
def status(run: Place, json_path: Json = None) -> None:
    """The MLflow runs of a folder, and how many records wait for their server."""
    from pipeline.tracking.spool import SenderState, unsent

    rows = {}
    for folder in _spools(run):
        state = SenderState.load(folder)
        rows[str(folder)] = {
            "mlflow_run_id": state.run_id,
            "url": state.url,
            "unsent": unsent(folder),
            "rejected": state.rejected,
            "error": state.error,
        }
    show_summary(rows, json_path)


@tracking_app.command(epilog="Example: roseate tracking send runs/demo/flamingo")
def send(
    run: Place,
    uri: Annotated[str | None, typer.Option(help="of MLflow, where it is not the run's")] = None,
    wait: Annotated[float, typer.Option(min=0, help="seconds, for each run")] = 600.0,
    json_path: Json = None,
) -> None:
    """Send what runs that have ended could not send. Exit code 4 while something is left."""
    from pipeline.errors import CannotGoOnError
    from pipeline.tracking.secrets import HIDDEN
    from pipeline.tracking.sender import is_locked, send_all, set_environment
    from pipeline.tracking.server import check_uri
    from pipeline.tracking.spool import SenderState, last_run, unsent

    set_environment()
    # Before MLflow itself sets it, to what it was last given.
    outer = os.environ.get("MLFLOW_TRACKING_URI")
    rows, left = {}, 0
    for folder in _spools(run):
        began = last_run(folder)
        if began is None or not unsent(folder):
            continue
        if is_locked(folder):
            left += unsent(folder)
            rows[str(folder)] = {
                "unsent": unsent(folder),
                "error": "a run that is under way sends it",
            }
            continue
        to = uri or began["uri"]
        if HIDDEN in to:
            to = outer
        if to is None:
            rule = f"is told, since the run's own holds a secret ({began['uri']})"
            raise ConfigError([Problem("--uri", None, rule, "or export MLFLOW_TRACKING_URI")])
        check_uri(to)
        before = unsent(folder)
        send_all(folder, to, wait)
        now = unsent(folder)
        left += now
        rows[str(folder)] = {"sent": before - now, "unsent": now}
        if now:
            rows[str(folder)]["error"] = SenderState.load(folder).error
    show_summary(rows, json_path)
    if left:
        raise CannotGoOnError(f"{left} records are not sent; send them again later")


def _spools(run: Path) -> list[Path]:
    found = sorted(path.parent for path in run.rglob("spool.jsonl")) if run.is_dir() else []
    if not found:
        rule = "is a folder of a run that was tracked (tracking/spool.jsonl)"
        raise ConfigError([Problem("RUN", str(run), rule, "name {root}/{name} of the run")])
    return found
