"""`roseate generate` and `roseate chat`."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.errors import ConfigError, Problem
from pipeline.cli.options import CheckpointName, Json, show_summary, write_text

if TYPE_CHECKING:
    from pipeline.generation.requests import Request, WrongRequest


def generate(
    checkpoint: CheckpointName,
    images: Annotated[
        list[str] | None, typer.Argument(help="image files, then any section.key=value")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="beginning of one text after all images; <image> says where they stand"),
    ] = None,
    shot: Annotated[
        list[str] | None, typer.Option(help="an example in front, IMAGE=TEXT; may be repeated")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="generated at most")] = 32,
    beams: Annotated[int, typer.Option(help="hypotheses kept")] = 1,
    temperature: Annotated[float, typer.Option(help="of the drawing; 0: the likeliest")] = 0.0,
    top_p: Annotated[float, typer.Option(help="mass of the tokens drawn from")] = 1.0,
    seed: Annotated[int, typer.Option(help="of the drawing")] = 0,
    attention: Annotated[
        Path | None, typer.Option(help="folder for pictures of where each word looks")
    ] = None,
    input_path: Annotated[
        str | None, typer.Option("--input", help="file of JSON lines, or - for standard input")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="file of JSON lines for --input; texts it has already are left out"),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="what is wrong becomes a row with an error")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts continued together")] = 16,
    json_path: Json = None,
) -> None:
    """Say what is on images: each by itself, or all in one prompt; also for files of JSON lines."""
    from pipeline.generation.settings import Sampling

    arguments = images or []
    # A file may be named with an equals sign, too.
    overrides = [text for text in arguments if "=" in text and not Path(text).is_file()]
    files = [text for text in arguments if text not in overrides]
    sampling = Sampling(max_new_tokens, beams, temperature, top_p, seed)
    problems = sampling.problems() + _check_folder("--attention", attention)
    settings = {"sampling": sampling, "batch_size": batch_size, "keep_going": keep_going}
    if input_path is None:
        if output is not None:
            problems.append(Problem("--output", str(output), "stands with --input", "use --json"))
        requests = _from_arguments(files, prompt, shot or [], problems)
        rows = _rows(checkpoint, overrides, requests, attention, settings, problems)
        show_summary(_captions(rows), json_path)
        return
    requests = _from_lines(files, prompt, shot, input_path, problems)
    done = _rows_before(output, problems) if output is not None else {}
    rows = _rows(checkpoint, overrides, requests, attention, settings, problems, done)
    if output is None:
        _print_rows(rows, json_path)
        return
    from pipeline.generation.rows import write_rows

    counts = write_rows(done.values(), rows, output)
    there = sum(request.id in done for request in requests)
    show_summary({"output": str(output), "there_before": there, **counts}, json_path)


def chat(
    checkpoint: CheckpointName,
    other: Annotated[str | None, typer.Argument(help="a second checkpoint, beside it")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of the page; 0: a free one")] = 7860,
    host: Annotated[str, typer.Option(help="address that it listens on")] = "127.0.0.1",
) -> None:
    """Serve a page on this machine: drop images in, see what the model says and where it looks."""
    from pipeline.chat.serve import check_address, check_library, serve
    from pipeline.trained import find_trained, open_trained

    problems: list[Problem] = []
    names = [name for name in (checkpoint, other) if name is not None]
    checks = [check_library, lambda: check_address(host, port)]
    for check in (*checks, *(partial(find_trained, name) for name in names)):
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    serve([open_trained(name) for name in names], host=host, port=port)


def _from_arguments(
    files: list[str], prompt: str | None, shot: list[str], problems: list[Problem]
) -> "list[Request | WrongRequest]":
    from pipeline.generation.requests import Request, read_shots

    shots, wrong = read_shots(shot)
    problems += wrong
    if prompt is not None:
        return [_checked(Request("prompt", [*map(Path, files)], prompt, shots, key="--prompt"))]
    if not files:
        problems.append(Problem("IMAGE", None, "at least one file, or --prompt", "name one"))
    requests = [Request(file, [Path(file)], shots=shots) for file in dict.fromkeys(files)]
    return [_checked(request) for request in requests]


def _checked(request: "Request") -> "Request | WrongRequest":
    from pipeline.generation.requests import WrongRequest

    problems = request.problems()
    return WrongRequest(request.id, problems) if problems else request


def _from_lines(
    files: list[str],
    prompt: str | None,
    shot: list[str] | None,
    input_path: str,
    problems: list[Problem],
) -> "list[Request | WrongRequest]":
    from pipeline.generation.requests import read_lines

    beside = {"IMAGE": files[0] if files else None, "--prompt": prompt, "--shot": shot or None}
    for key, value in beside.items():
        if value is not None:
            rule = "is not given beside --input, whose lines name their own"
            problems.append(Problem(key, value, rule, "leave one of the two out"))
    if input_path == "-":
        return read_lines(sys.stdin.buffer, Path())
    path = Path(input_path)
    if not path.is_file():
        rule = "is a file of JSON lines"
        problems.append(Problem("--input", input_path, rule, "correct the path"))
        return []
    with path.open("rb") as file:
        return read_lines(file, path.parent)


def _rows_before(output: Path, problems: list[Problem]) -> dict[str, dict]:
    from pipeline.generation.rows import read_rows

    problems += _check_folder("--output", output.parent)
    try:
        return read_rows(output)
    except ConfigError as error:
        problems += error.problems
        return {}


def _rows(
    checkpoint: str,
    overrides: list[str],
    requests: "list[Request | WrongRequest]",
    attention: Path | None,
    settings: dict,
    problems: list[Problem],
    done: Iterable[str] = (),
) -> Iterator[dict]:
    """Rows of the requests that are not done; all that can be known to be wrong is said before.

    Raises:
        ConfigError: likewise, or see `pipeline.generation.generate.generate`.
    """
    from pipeline.generation.generate import generate as run_generate
    from pipeline.generation.generate import picture_files
    from pipeline.generation.requests import WrongRequest

    if not settings["keep_going"]:
        problems += [p for r in requests if isinstance(r, WrongRequest) for p in r.problems]
    if problems:
        raise ConfigError(problems)
    from pipeline.trained import open_trained

    looks = picture_files(requests, attention) if attention is not None else None
    left = [request for request in requests if request.id not in done]
    return run_generate(open_trained(checkpoint, overrides), left, looks=looks, **settings)


def _captions(rows: Iterable[dict]) -> dict[str, dict[str, str]]:
    captions, errors = {}, {}
    for row in rows:
        if "error" in row:
            errors[row["id"]] = row["error"]
        else:
            captions[row["id"]] = row["text"]
    return {"captions": captions} | ({"errors": errors} if errors else {})


def _print_rows(rows: Iterable[dict], json_path: Path | None) -> None:
    from pipeline.generation.rows import as_line

    counts = {"written": 0, "errors": 0}
    for row in rows:
        typer.echo(as_line(row), nl=False)
        counts["written"] += 1
        counts["errors"] += "error" in row
    print("roseate: {written} rows, {errors} with an error".format(**counts), file=sys.stderr)
    if json_path:
        write_text(json.dumps(counts), json_path)


def _check_folder(key: str, folder: Path | None) -> list[Problem]:
    """What keeps a folder from being made; it is not made yet."""
    if folder is None:
        return []
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        return []
    rule = f"is a folder, or can be made one: {there} is a file or cannot be written to"
    return [Problem(key, str(folder), rule, "name another place")]
