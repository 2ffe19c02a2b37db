"""The files of a table: one file, or the files right in a folder, on disk or in a store."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_prep.errors import ConfigError, Problem
from data_prep.storage import FileInfo, Folder

SUFFIXES = (".parquet", ".tsv", ".csv", ".jsonl", ".txt")
# img2dataset, Spark and git leave files with such names beside their tables.
_HIDDEN = (".", "_")


@dataclass(frozen=True)
class TableFiles:
    """Where a table is.

    Attributes:
        folder: of the files; a local one by its whole path.
        kind: parquet, tsv, csv, jsonl or txt, the same for all.
        files: in order of their names.
    """

    folder: Folder
    kind: str
    files: list[FileInfo]


def find_files(url: str, key: str) -> TableFiles:
    """List the files of a table.

    Args:
        url: of a file or a folder.
        key: of the configuration, for messages: `ingest.sources.NAME.table`.

    Raises:
        ConfigError: nothing is there, it cannot be read, or it is no table of one kind.
    """

    def refuse(rule: str, remedy: str) -> ConfigError:
        return ConfigError([Problem(key, url, rule, remedy)])

    try:
        folder, files = _list(url, key)
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            remedy = "correct the path, the credentials or the end point of the store"
            raise refuse(f"the URL table must be readable ({error})", remedy) from None
        remedy = f"correct the path, or put {', '.join(SUFFIXES)} files there"
        raise refuse("the URL table must exist", remedy) from None
    if not files:
        remedy = "name the folder that has them itself; folders below it are not searched"
        raise refuse(f"a folder of tables must hold {', '.join(SUFFIXES)} files", remedy)
    suffixes = sorted({PurePosixPath(file.name).suffix.lower() for file in files})
    if len(suffixes) > 1 or suffixes[0] not in SUFFIXES:
        here = ", ".join(suffix or "(no extension)" for suffix in suffixes)
        rule = f"a URL table is one kind of {', '.join(SUFFIXES)}; here: {here}"
        raise refuse(rule, "convert or rename the file, or keep one kind per folder")
    empty = [file.name for file in files if file.bytes == 0]
    if empty:
        rule = f"a table must not be empty; {', '.join(empty)} has 0 bytes"
        raise refuse(rule, "check the file")
    return TableFiles(folder, suffixes[0][1:], files)


def _list(url: str, key: str) -> tuple[Folder, list[FileInfo]]:
    parent, name = _split(url)
    folder = Folder(parent, key)
    if name:
        try:
            return folder, [folder.stat(name)]
        except FileNotFoundError:
            pass
    folder = Folder(url if "://" in url else str(Path(url).resolve()), key)
    return folder, [file for file in folder.files() if _is_table(file.name)]


def _split(url: str) -> tuple[str, str]:
    if "://" not in url:
        path = Path(url).resolve()
        return str(path.parent), path.name
    parent, _, name = url.rpartition("/")
    return (parent, name) if not parent.endswith("/") else (url, "")


def _is_table(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(_HIDDEN)
