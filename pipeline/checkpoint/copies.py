"""Copies of what is learnt in the host's memory, which the next step may not change."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.engine.logical import Chunk


class HostCopies:
    """Copies chunks, into the same pinned memory every time where they come from a GPU.

    Fresh memory has to be made by the kernel page by page while it is filled: 1.8 GB a second on the host of
    an H200, far below what the bus can do. So a rank of a GPU keeps room for one checkpoint, from its
    first on.
    """

    def __init__(self) -> None:
        self._room: dict[torch.dtype, Tensor] = {}

    def take(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Chunks on the host, which the next call may overwrite."""
        chunks = list(chunks)
        if all(chunk.values.device.type == "cpu" for chunk in chunks):
            return [replace(c, values=c.values.detach().clone()) for c in chunks]
        used = dict.fromkeys(self._make_room(chunks), 0)
        copies = []
        for chunk in chunks:
            dtype, size = chunk.values.dtype, chunk.values.numel()
            place = self._room[dtype][used[dtype] : used[dtype] + size]
            used[dtype] += size
            place.copy_(chunk.values.detach(), non_blocking=True)
            copies.append(replace(chunk, values=place))
        torch.cuda.synchronize()
        return copies

    def _make_room(self, chunks: list[Chunk]) -> dict[torch.dtype, int]:
        """Elements by dtype, for which there is room afterwards."""
        needed: dict[torch.dtype, int] = {}
        for chunk in chunks:
            dtype = chunk.values.dtype
            needed[dtype] = needed.get(dtype, 0) + chunk.values.numel()
        for dtype, size in needed.items():
            if dtype not in self._room or len(self._room[dtype]) < size:
                self._room.pop(dtype, None)  # before there is another
                self._room[dtype] = torch.empty(size, dtype=dtype, pin_memory=True)
        return needed
