"""A folder to read from, on disk or behind a URL such as s3://bucket/dataset; and whole files to write."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from data_prep.errors import ConfigError, Problem

WAITS = (0.2, 1.0, 5.0)  # seconds before a store is asked again
T = TypeVar("T")


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
        return _ask(lambda: self._files.exists(self._full(name)))

    def names(self, suffix: str) -> list[str]:
        """All files below the folder that end so, sorted."""
        if self.is_local:
            found = self.path.rglob(f"*{suffix}")
            return sorted(p.relative_to(self.path).as_posix() for p in found if p.is_file())
        paths = _ask(lambda: self._files.find(self._root))
        return sorted(p[len(self._root) + 1 :] for p in paths if p.endswith(suffix))

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            OSError: there is no such file.
        """
        if self.is_local:
            return (self.path / name).stat().st_size
        return _ask(lambda: self._files.size(self._full(name)))

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            OSError: it cannot be read.
        """
        if self.is_local:
            return (self.path / name).read_bytes()
        return _ask(lambda: self._files.cat_file(self._full(name)))

    def open(self, name: str):
        """A file to read from front to back, as a context manager; it has ``read`` alone.

        Raises:
            OSError: there is no such file; so does reading it where that fails.
        """
        if self.is_local:
            return (self.path / name).open("rb")
        full = self._full(name)
        file = _ask(lambda: self._files.open(full, "rb", cache_type="readahead"))
        return _StoreFile(file)

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
        return _ask(lambda: self._files.cat_ranges(names, starts, ends, on_error="raise"))

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
                _ask(lambda: self._files.get_file(self._full(name), str(partial)))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def _full(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def _ask(call: Callable[[], T]) -> T:
    """Ask a store; what fails in passing is asked again, what is not there or not allowed is not."""
    for wait in WAITS:
        try:
            return _once(call)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            time.sleep(wait)
    return _once(call)


def _once(call: Callable[[], T]) -> T:
    with _as_os_error():
        return call()


class _StoreFile:
    def __init__(self, file) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _as_os_error():
            return self._file.read(size)

    def __enter__(self) -> "_StoreFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Clients of stores have error classes of their own, for a lost connection among others."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


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
