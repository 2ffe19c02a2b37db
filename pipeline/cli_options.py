"""What the commands of `roseate` share: their common options, and writing where these ask for it."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[str, typer.Argument(help="a preset (demo, openclipart, ...) or a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value", metavar="[SECTION.KEY=VALUE ...]")
]
Json = Annotated[Path | None, typer.Option("--json", help="also write the summary to this file")]


def write_text(text: str, path: Path) -> None:
    """Write a file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
