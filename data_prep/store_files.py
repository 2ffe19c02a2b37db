"""Files of an object store, whose clients fail in ways of their own and sometimes in passing."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

WAITS = (0.2, 1.0, 5.0)  # seconds before a store is asked again
T = TypeVar("T")


def ask(call: Callable[[], T]) -> T:
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


class StoreFile:
    """A file to read from front to back."""

    def __init__(self, file) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _as_os_error():
            return self._file.read(size)

    def __enter__(self) -> "StoreFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class RangeFile(io.RawIOBase):
    """A file of a store without read-ahead: who reads it asks for large spans."""

    def __init__(self, files, full: str, size: int) -> None:
        self._files, self._full, self._size, self._at = files, full, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        start = self._at
        data = ask(lambda: self._files.cat_file(self._full, start=start, end=end))
        self._at += len(data)
        return data

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Clients of stores have error classes of their own, for a lost connection among others."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
