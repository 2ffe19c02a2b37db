"""A folder to read from, on disk or behind a URL such as s3://bucket/dataset; and whole files to write."""

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import ConfigError, Problem
from data_prep.store_files import RangeFile, StoreFile, ask

# What the clients of stores call that which changes with a file's content.
_STAMPS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified")


@dataclass(frozen=True)
class FileInfo:
    """A file as its folder lists it.

    Attributes:
        name: below the folder.
        bytes: its size.
        stamp: text that changes when the file is written again: times of the last change, or the
            store's ETag; None where the store has nothing of the kind.
    """

    name: str
    bytes: int
    stamp: str | None


class Folder:
    """Files below one place, named by their paths relative to it.

    Safe to use from several threads. A store that fails is asked again some times. Credentials and end
    points of object stores come from their own environment variables (``AWS_ACCESS_KEY_ID``,
    ``AWS_ENDPOINT_URL``, ...).

    Args:
        url: path, or URL that fsspec knows.
        key: configuration key that named it, for messages.

    Raises:
        ConfigError: fsspec knows no such kind of URL, or the package for it is not installed.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url = str(url)
        self.is_local = "://" not in self.url
        if self.is_local:
            self.path = Path(self.url)
            return
        import fsspec  # slow to import, and local folders do not need it

        try:
            self._files, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            rule = f"is a path, or a URL of a store that can be read ({error})"
            remedy = "correct the URL, or install the package it names"
            raise ConfigError([Problem(key, self.url, rule, remedy)]) from None
        self._root = root.rstrip("/")

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file, or without a name the folder itself."""
        if self.is_local:
            return (self.path / name).exists()
        return ask(lambda: self._files.exists(self._full(name)))

    def names(self, suffix: str) -> list[str]:
        """All files below the folder that end so, sorted."""
        if self.is_local:
            found = self.path.rglob(f"*{suffix}")
            return sorted(p.relative_to(self.path).as_posix() for p in found if p.is_file())
        # Others write too: what was listed before may be out of date.
        self._files.invalidate_cache()
        paths = ask(lambda: self._files.find(self._root))
        return sorted(p[len(self._root) + 1 :] for p in paths if p.endswith(suffix))

    def files(self) -> list[FileInfo]:
        """The files right in the folder, not those of folders below it, in order of their names.

        Raises:
            OSError: the folder cannot be listed.
        """
        if self.is_local:
            names = sorted(p.name for p in self.path.iterdir() if p.is_file())
            return [self.stat(name) for name in names]
        self._files.invalidate_cache()
        entries = ask(lambda: self._files.ls(self._root, detail=True))
        files = [_info(e["name"].rsplit("/", 1)[-1], e) for e in entries if e["type"] == "file"]
        return sorted((f for f in files if f.name), key=lambda f: f.name)

    def stat(self, name: str) -> FileInfo:
        """Size and stamp of a file.

        Raises:
            OSError: there is no such file.
        """
        if self.is_local:
            status = (self.path / name).stat()
            if not (self.path / name).is_file():
                raise FileNotFoundError(f"{self.path / name} is no file")
            # A copy may bring the time of its original along; the time of the inode it cannot.
            return FileInfo(name, status.st_size, f"{status.st_mtime_ns}-{status.st_ctime_ns}")
        self._files.invalidate_cache()
        entry = ask(lambda: self._files.info(self._full(name)))
        if entry["type"] != "file":
            raise FileNotFoundError(f"{self._full(name)} is no file")
        return _info(name, entry)

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            OSError: there is no such file.
        """
        if self.is_local:
            return (self.path / name).stat().st_size
        return ask(lambda: self._files.size(self._full(name)))

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            OSError: it cannot be read.
        """
        if self.is_local:
            return (self.path / name).read_bytes()
        return ask(lambda: self._files.cat_file(self._full(name)))

    def open(self, name: str):
        """A file to read from front to back, as a context manager; it has ``read`` alone.

        Raises:
            OSError: there is no such file; so does reading it where that fails.
        """
        if self.is_local:
            return (self.path / name).open("rb")
        full = self._full(name)
        file = ask(lambda: self._files.open(full, "rb", cache_type="readahead"))
        return StoreFile(file)

    def open_random(self, name: str) -> io.BufferedIOBase | io.RawIOBase:
        """A file to read from any position; a read of a store is one request, asked again if it fails.

        Raises:
            OSError: there is no such file; so does reading it where that fails.
        """
        if self.is_local:
            return (self.path / name).open("rb")
        full = self._full(name)
        return RangeFile(self._files, full, ask(lambda: self._files.info(full))["size"])

    def read_spans(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes of ``(name, start, length)`` each; from a store all of them at the same time.

        Raises:
            OSError: one of them cannot be read.
        """
        if self.is_local:
            raise ValueError("open local files and read at positions instead")
        names = [self._full(name) for name, _, _ in spans]
        starts = [start for _, start, _ in spans]
        ends = [start + length for _, start, length in spans]
        return ask(lambda: self._files.cat_ranges(names, starts, ends, on_error="raise"))

    def download(self, name: str, target: Path) -> None:
        """Copy a file to the local disk; it has its name only when it is whole.

        Raises:
            OSError: it cannot be read or written; no part of it is left.
        """
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            if self.is_local:
                shutil.copyfile(self.path / name, partial)
            else:
                ask(lambda: self._files.get_file(self._full(name), str(partial)))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file; it has its name only when it is whole.

        Raises:
            OSError: it cannot be written.
        """
        if self.is_local:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path / name, data)
        else:
            ask(lambda: self._files.pipe_file(self._full(name), data))

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file into a store.

        Raises:
            OSError: it cannot be read or written.
        """
        if self.is_local:
            raise ValueError("write local files where they are to be")
        ask(lambda: self._files.put_file(str(source), self._full(name)))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""
        if self.is_local:
            path = self.path / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)
            return
        if self.exists(name):
            ask(lambda: self._files.rm(self._full(name), recursive=True))
            self._files.invalidate_cache()

    def _full(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def _info(name: str, entry: dict) -> FileInfo:
    stamp = next((str(entry[key]) for key in _STAMPS if entry.get(key)), None)
    return FileInfo(name, entry["size"], stamp)


def write_file(path: Path, data: bytes) -> None:
    """Write a local file; it has its name only when it is whole and on the disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
