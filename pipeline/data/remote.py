"""Shards in an object store: read span by span, or kept whole on the local disk within a size limit.

The cache is shared by all processes of a node, which may be killed at any moment:

    <sha256>.tar        a whole shard, checked against the manifest
    <sha256>.lock       held by whoever fetches the shard
    <sha256>.fetching   as large as the shard will be, so that its room is taken; then renamed
"""

import fcntl
import hashlib
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
DOWNLOADS = 4
Span = tuple[ShardEntry, int, int]


class RemoteShards:
    """Reads spans of shards that lie in an object store.

    Args:
        read: ``shards`` keeps whole shards in `cache`; ``ranges`` asks for the spans alone.
        cache: folder on the local disk, shared by all processes of a node.
        cache_bytes: what the folder may hold; the shards that were used longest ago make room. One
            shard alone may be larger.
    """

    def __init__(self, read: str, cache: Path, cache_bytes: int) -> None:
        self.mode = read
        self.cache = cache
        self.cache_bytes = cache_bytes
        self._pool: ThreadPoolExecutor | None = None
        self._asked: set[str] = set()

    def read(self, folder: Folder, spans: list[Span]) -> list[bytes]:
        """Bytes of ``(shard, start, length)`` each, in the order asked.

        Raises:
            OSError: the store goes on failing, or a tar is not the one that was indexed.
        """
        if self.mode == "ranges":
            return _read_ranges(folder, spans)
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

    def stop(self) -> None:
        """Forget what was to be fetched and has not begun; a process that ends must not wait for it."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool, self._asked = None, set()

    def _fetch_quietly(self, folder: Folder, shard: ShardEntry) -> None:
        try:
            # A failure is told by the read that needs the shard.
            with suppress(OSError), self._opened(folder, shard):
                pass
        finally:
            self._asked.discard(shard.sha256)

    @contextmanager
    def _opened(self, folder: Folder, shard: ShardEntry) -> Iterator[int]:
        """A descriptor of the cached shard, which stays readable even if the shard is removed.

        Named by its content: a tar that has changed is another one.
        """
        target = self.cache / f"{shard.sha256}.tar"
        # Again, where another process made room of it before it could be opened.
        while (file := _open(target, shard.bytes)) is None:
            self.cache.mkdir(parents=True, exist_ok=True)
            with locked(target.with_suffix(".lock")):
                if not target.exists():
                    self._fetch(folder, shard, target)
        try:
            yield file
        finally:
            os.close(file)

    def _fetch(self, folder: Folder, shard: ShardEntry, target: Path) -> None:
        taken, partial = target.with_suffix(".fetching"), target.with_suffix(".partial")
        self._take_room(shard.bytes, taken)
        try:
            where, name = _place(folder, shard.path)
            where.download(name, partial)
            with partial.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != shard.sha256:
                raise OSError(
                    f"{where.url}/{name} is not the tar that the manifest names (sha256 "
                    f"{sha256[:12]}, not {shard.sha256[:12]}): it was changed after it was indexed; "
                    "bring it back, or run `roseate index --again`"
                )
            # Under the lock: whoever counts meets the shard as one of the two, not as neither.
            with locked(self.cache / "room.lock"):
                os.replace(partial, target)
                taken.unlink()
        finally:
            partial.unlink(missing_ok=True)
            taken.unlink(missing_ok=True)

    def _take_room(self, needed: int, taken: Path) -> None:
        """Remove what was used longest ago, of any dataset, until the new shard fits; wait for others.

        What others fetch at the moment cannot be removed yet.
        """
        while not self._try_room(needed, taken):
            time.sleep(0.05)

    def _try_room(self, needed: int, taken: Path) -> bool:
        with locked(self.cache / "room.lock"):
            total, shards, fetching = needed, [], 0
            for path in self.cache.iterdir():
                if path.suffix not in (".tar", ".fetching") or _left_behind(path):
                    continue
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    total += stat.st_size
                    fetching += path.suffix == ".fetching"
                    if path.suffix == ".tar":
                        shards.append((stat.st_mtime_ns, stat.st_size, path))
            for _, size, path in sorted(shards):
                if total <= self.cache_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size
            if total > self.cache_bytes and fetching:
                return False
            with taken.open("wb") as file:
                file.truncate(needed)  # takes no block of the disk
            return True

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


def _left_behind(path: Path) -> bool:
    """Whether nobody fetches what is being fetched: the process died; then it is removed."""
    if path.suffix != ".fetching":
        return False
    file = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        path.with_suffix(".partial").unlink(missing_ok=True)
        return True
    finally:
        os.close(file)


def _open(path: Path, size: int) -> int | None:
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if (
        os.fstat(file).st_size != size
    ):  # a machine that lost its power may keep a name without bytes
        os.close(file)
        path.unlink(missing_ok=True)
        return None
    with suppress(OSError):
        os.utime(path)  # used now: the last to make room
    return file


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process of the node at a time; a process that dies lets go."""
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
