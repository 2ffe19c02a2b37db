"""What was used lately, kept within a number: opened files, indexes, parts of the order."""

import resource
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
MOST_FILES = 512


class Recent(Generic[K, V]):
    """Makes what it is asked for, and keeps the last of it.

    Two threads may ask at once: at worst both make the same. A copy in another process begins empty.

    Args:
        make: key to value.
        limit: values kept; the one that was used longest ago is let go.
        let_go: what to do with it, such as closing a file.
    """

    def __init__(
        self, make: Callable[[K], V], limit: int, let_go: Callable[[V], object] | None = None
    ) -> None:
        self._make, self._limit, self._let_go = make, limit, let_go
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __call__(self, key: K) -> V:
        """The value of a key."""
        value = self._kept.pop(key, None)
        if value is None:
            value = self._make(key)
        self._kept[key] = value  # last: the one to stay
        while len(self._kept) > self._limit:
            _, old = self._kept.popitem(last=False)
            if self._let_go is not None:
                self._let_go(old)
        return value

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple:
        return Recent, (self._make, self._limit, self._let_go)


def files_at_once() -> int:
    """How many files one dataset may keep open; raises the soft limit of the process to its hard one.

    A node with a hard limit of 1,024 still reads from a dozen sources.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MOST_FILES if hard == resource.RLIM_INFINITY else max(8, min(MOST_FILES, hard // 32))
