"""`roseate evaluate`."""

import difflib
import os
from typing import Annotated

import typer

from data_prep.errors import ConfigError, Problem
from pipeline.cli.options import CheckpointName, Json, Overrides, show_summary
from pipeline.evaluation.config import SUITES


def evaluate(
    checkpoint: CheckpointName,
    overrides: Overrides = None,
    suite: Annotated[
        str | None,
        typer.Option(help=f"what to evaluate, joined by commas: {', '.join(SUITES)}"),
    ] = None,
    processes: Annotated[
        int, typer.Option(help="start so many processes here; not under srun or torchrun")
    ] = 1,
    json_path: Json = None,
) -> None:
    """Evaluate a checkpoint on its run's held-out samples, or on evaluation.data; see docs/evaluation.md.

    Figures with intervals, a page with the hardest samples, and an MLflow run under that of the training.
    """
    suites = read_suites(suite)
    if processes > 1:
        from pipeline.launch import run_group

        arguments = ["evaluate", checkpoint, *(overrides or [])]
        arguments += ["--suite", suite] if suite else []
        arguments += ["--json", str(json_path)] if json_path else []
        raise typer.Exit(run_group(arguments, processes))
    from pipeline.distributed import DistInfo, start_group, stop_group, world_size_from_env
    from pipeline.evaluation.run import evaluate as run_evaluate
    from pipeline.trained import find_trained

    info = start_group() if world_size_from_env() > 1 else DistInfo.one()
    try:
        config, found = find_trained(checkpoint, overrides or (), info)
        summary = run_evaluate(config, found, suites, info)
    finally:
        stop_group()
    if os.environ.get("RANK", "0") == "0":
        show_summary(summary, json_path)


def read_suites(text: str | None) -> list[str] | None:
    """Suites of the option.

    Raises:
        ConfigError: naming every one that is not known, and the nearest that is.
    """
    if text is None:
        return None
    suites = [name.strip() for name in text.split(",")]
    problems = []
    for name in (n for n in suites if n not in SUITES):
        close = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        rule = "is a suite"
        problems.append(Problem("--suite", name, rule, f"{hint}known: {', '.join(SUITES)}"))
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(suites))
