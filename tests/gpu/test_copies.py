"""Copies of what is learnt, on the host."""

import torch

from pipeline.checkpoint.copies import HostCopies
from pipeline.engine.logical import Chunk


def chunks_on(device, sizes):
    flat = torch.randn(sum(sizes), device=device)
    codes = torch.randint(256, (sum(sizes),), dtype=torch.uint8, device=device)
    chunks, start = [], 0
    for number, size in enumerate(sizes):
        for kind, values in (("master", flat), ("codes1", codes)):
            chunks.append(Chunk(kind, f"p{number}", start, values[start : start + size]))
        start += size
    return chunks


def test_copies_are_equal_and_outlive_a_change(device, seed):
    copies = HostCopies()
    for sizes in (
        [300, 7, 500],
        [20, 1],
        [4000, 3, 3],
    ):  # fewer, and then more than there is room for
        chunks = chunks_on(device, sizes)
        wanted = [chunk.values.clone() for chunk in chunks]
        taken = copies.take(iter(chunks))
        for chunk in chunks:
            chunk.values.zero_()
        for chunk, copy, values in zip(chunks, taken, wanted, strict=True):
            assert (copy.kind, copy.name, copy.start) == (chunk.kind, chunk.name, chunk.start)
            assert copy.values.device.type == "cpu"
            assert torch.equal(copy.values, values.cpu())


def test_room_in_pinned_memory_is_used_again(device):
    copies = HostCopies()
    first, second = (copies.take(chunks_on(device, [100])) for _ in range(2))
    pinned = first[0].values.is_pinned() if device == "cuda" else False
    assert pinned == (device == "cuda")
    same = first[0].values.data_ptr() == second[0].values.data_ptr()
    assert same == (device == "cuda")
