"""Shards in an object store: read span by span, or kept whole on the local disk within a size limit."""

import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.schema import ShardEntry
from data_prep.storage import Folder

# Two spans of one shard that are nearer than this are fetched by one request.
LARGEST_GAP = 64 * 1024
TRIES = 4
DOWNLOADS = 4
Span = tuple[ShardEntry, int, int]


class RemoteShards:
    """Reads spans of shards that lie in an object store.

    Args:
        read: ``shards`` keeps whole shards in `cache`; ``ranges`` asks for the spans alone.
        cache: folder on the local disk, shared by all processes of a node.
        cache_bytes: what the folder may hold; the shards that were used longest ago make room.
    """

    def __init__(self, read: str, cache: Path | None, cache_bytes: int) -> None:
        self.mode = read
        self.cache = cache
        self.cache_bytes = cache_bytes
        self._pool: ThreadPoolExecutor | None = None
        self._asked: set[str] = set()

    def read(self, folder: Folder, spans: list[Span]) -> list[bytes]:
        """Bytes of ``(shard, start, length)`` each, in the order asked.

        Raises:
            OSError: the store still fails after some tries, or a tar is not the one that was indexed.
        """
        if self.mode == "ranges":
            return _retry(lambda: _read_ranges(folder, spans))
        data: list[bytes] = []
        for shard, start, length in spans:
            # Opened anew: another process may have made room of it in between, and the name is cheap.
            with self._opened(folder, shard) as file:
                data.append(os.pread(file, length, start))
        return data

    def prepare(self, folder: Folder, shard: ShardEntry) -> None:
        """Begin to fetch a shard that will be read soon; returns at once."""
        if self.mode == "ranges" or shard.sha256 in self._asked:
            return
        self._asked.add(shard.sha256)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="shards")
        self._pool.submit(self._fetch_quietly, folder, shard)

    def _fetch_quietly(self, folder: Folder, shard: ShardEntry) -> None:
        # A failure is told by the read that needs the shard.
        with suppress(OSError), self._opened(folder, shard):
            pass
        self._asked.discard(shard.sha256)

    @contextmanager
    def _opened(self, folder: Folder, shard: ShardEntry) -> Iterator[int]:
        """A descriptor of the cached shard, which stays readable even if the shard is removed.

        Named by its content: a tar that has changed is another one.
        """
        target = self.cache / f"{shard.sha256}.tar"
        file = _open(target)
        if file is None:
            self.cache.mkdir(parents=True, exist_ok=True)
            with _locked(target.with_suffix(".lock")):
                file = _open(target)  # somebody else may have fetched it meanwhile
                if file is None:
                    self._make_room(shard.bytes)
                    _retry(lambda: _download(folder, shard, target))
                    file = _open(target)
        try:
            yield file
        finally:
            os.close(file)

    def _make_room(self, needed: int) -> None:
        """Remove what was used longest ago, of any dataset, until the new shard fits."""
        with _locked(self.cache / "room.lock"):
            shards = []
            for path in self.cache.glob("*.tar"):
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    shards.append((stat.st_mtime_ns, stat.st_size, path))
            total = sum(size for _, size, _ in shards)
            for _, size, path in sorted(shards):
                if total + needed <= self.cache_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size

    def __getstate__(self) -> dict:
        """Threads stay behind when it goes to a worker process."""
        return self.__dict__ | {"_pool": None, "_asked": set()}


def _read_ranges(folder: Folder, spans: list[Span]) -> list[bytes]:
    """Neighbours in one shard by one request each, all requests at the same time."""
    order = sorted(range(len(spans)), key=lambda i: (spans[i][0].path, spans[i][1]))
    joined: list[tuple[str, int, int, list[int]]] = []
    for i in order:
        _, start, length = spans[i]
        shard = spans[i][0].path
        if joined and joined[-1][0] == shard and start <= joined[-1][2] + LARGEST_GAP:
            _, first, end, members = joined[-1]
            joined[-1] = shard, first, max(end, start + length), [*members, i]
        else:
            joined.append((shard, start, start + length, [i]))
    places = [(*_place(folder, path), first, end - first) for path, first, end, _ in joined]
    # All tars of a dataset lie in one store.
    blocks = places[0][0].read_spans([(name, first, length) for _, name, first, length in places])
    data: list[bytes] = [b""] * len(spans)
    for (_, first, _, members), block in zip(joined, blocks, strict=True):
        for i in members:
            _, start, length = spans[i]
            data[i] = block[start - first : start - first + length]
    return data


def _place(folder: Folder, path: str) -> tuple[Folder, str]:
    """Where a tar is that the manifest names: below the folder, or by a whole URL."""
    if "://" not in path:
        return folder, path
    scheme, _, rest = path.partition("://")
    bucket, _, name = rest.partition("/")
    return Folder(f"{scheme}://{bucket}", "manifest"), name


def _download(folder: Folder, shard: ShardEntry, target: Path) -> None:
    where, name = _place(folder, shard.path)
    where.download(name, target)
    size = target.stat().st_size
    if size != shard.bytes:
        target.unlink()
        raise OSError(
            f"{where.url}/{name} has {size} bytes, the manifest says {shard.bytes}: the tar was "
            "changed after it was indexed; bring it back, or run `roseate index --again`"
        )


def _open(path: Path) -> int | None:
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):
        os.utime(path)  # used now: the last to make room
    return file


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process of the node at a time; a process that dies lets go."""
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _retry(call):
    for attempt in range(TRIES):
        try:
            return call()
        except OSError:
            if attempt == TRIES - 1:
                raise
            time.sleep(0.2 * 4**attempt)
