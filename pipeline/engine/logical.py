"""Masters and moments as chunks of logical parameters: taken from an engine, put into one of any layout.

Kinds of chunks: ``master`` fp32; ``exact1`` and ``exact2`` fp32 moments; ``codes1``, ``codes2`` uint8
moments and ``absmax1``, ``absmax2`` fp32, the scales of their blocks. A chunk begins at an element of its
logical parameter; one of scales at a block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.engine.blocks import Piece
from pipeline.engine.blockwise import RULES, BlockwiseOptimizer, code_maps
from pipeline.engine.fragments import BLOCK, EngineView, Fragment

# AdamW's own names for what are moments 1 and 2 here.
TORCH_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Chunk:
    """Part of a logical parameter, or of its moments.

    Attributes:
        kind: see above.
        name: of the logical parameter.
        start: element, or block for scales.
        values: one-dimensional.
    """

    kind: str
    name: str
    start: int
    values: Tensor


# (kind, name, low, high) -> the stored chunks that overlap elements (or blocks) low to high, cut to them.
ReadChunks = Callable[[str, str, int, int], list[Chunk]]


def take_chunks(view: EngineView, owned: list[Fragment]) -> Iterator[Chunk]:
    """Everything in these fragments, as views; clone what is to outlive the next step."""
    for fragment in owned:
        values = view.flats[fragment.flat].narrow(0, fragment.offset, fragment.numel)
        yield Chunk("master", fragment.name, fragment.start, values)
    if isinstance(view.inner, BlockwiseOptimizer):
        yield from _take_blockwise(view, owned)
        return
    for fragment in owned:
        state = view.inner.state.get(view.keys[fragment.flat], {})
        for number, name in enumerate(TORCH_MOMENTS, 1):
            if name in state:
                values = state[name].view(-1).narrow(0, fragment.offset, fragment.numel)
                yield Chunk(f"exact{number}", fragment.name, fragment.start, values)


def take_steps(view: EngineView) -> dict[str, int]:
    """Steps that the moments of each logical parameter of this rank have seen."""
    steps = {}
    for fragment in view.fragments:
        state = view.inner.state.get(view.keys[fragment.flat], {})
        if "step" in state:
            steps[fragment.name] = int(state["step"])
    return steps


def put_chunks(view: EngineView, read: ReadChunks, steps: dict[str, int]) -> None:
    """Fill masters and moments of this rank; bit-equal, whatever layout they come from.

    A parameter that is not stored (it was frozen then) keeps its master and begins with moments of 0.

    Args:
        view: of the engine; its model's weights are to be published afterwards.
        read: gives the stored chunks.
        steps: by name, as `take_steps` gave on all ranks together.

    Raises:
        ValueError: a parameter is stored in part, or two of one flat tensor have seen different
            numbers of steps.
    """
    for fragment in view.fragments:
        stop = fragment.start + fragment.numel
        chunks = read("master", fragment.name, fragment.start, stop)
        if not chunks:
            continue
        values = _joined(chunks, fragment, torch.float32)
        view.flats[fragment.flat].narrow(0, fragment.offset, fragment.numel).copy_(values)
    seen: dict[int, set[int | None]] = {}
    for fragment in view.fragments:
        seen.setdefault(fragment.flat, set()).add(steps.get(fragment.name))
    mixed = [flat for flat, counts in seen.items() if len(counts) > 1]
    if mixed:
        names = sorted({f.name for f in view.fragments if f.flat == mixed[0]})
        raise ValueError(f"parameters of one group have seen different numbers of steps: {names}")
    known = {flat: counts.pop() for flat, counts in seen.items()}
    if isinstance(view.inner, BlockwiseOptimizer):
        _put_blockwise(view, view.inner, read, known)
    else:
        _put_torch(view, read, known)


def _take_blockwise(view: EngineView, owned: list[Fragment]) -> Iterator[Chunk]:
    optimizer = view.inner
    inside: dict[tuple[int, str], list[Fragment]] = {}
    for fragment in owned:
        inside.setdefault((fragment.flat, fragment.name), []).append(fragment)
    for flat, key in enumerate(view.keys):
        state = optimizer.state.get(key)
        if not state:
            continue
        for piece in optimizer.layouts[key].pieces:
            for fragment in inside.get((flat, piece.fragment.name), ()):
                part = piece.fragment.cut(fragment.start, fragment.start + fragment.numel)
                if part is not None:
                    yield from _piece_chunks(state, piece, part, len(RULES[optimizer.rule]))


def _piece_chunks(state: dict, piece: Piece, part: Fragment, moments: int) -> Iterator[Chunk]:
    begin = piece.offset + part.start - piece.fragment.start
    for number in range(1, moments + 1):
        if piece.bits == 32:
            values = state[f"exact{number}"].narrow(0, begin, part.numel)
            yield Chunk(f"exact{number}", part.name, part.start, values)
            continue
        codes = state[f"codes{number}"].narrow(0, begin, part.numel)
        yield Chunk(f"codes{number}", part.name, part.start, codes)
        first = piece.block + (part.start - piece.fragment.start) // BLOCK
        scales = state[f"absmax{number}"].narrow(0, first, -(-part.numel // BLOCK))
        yield Chunk(f"absmax{number}", part.name, part.start // BLOCK, scales)


def _put_torch(view: EngineView, read: ReadChunks, steps: dict[int, int | None]) -> None:
    # Also from 8-bit moments: their values are exact in 32 bits.
    maps = None
    for fragment in view.fragments:
        if steps[fragment.flat] is None:
            view.inner.state.pop(view.keys[fragment.flat], None)
            continue
        key = view.keys[fragment.flat]
        state = view.inner.state[key]
        state["step"] = torch.tensor(float(steps[fragment.flat]))
        for number, name in enumerate(TORCH_MOMENTS, 1):
            if name not in state:
                state[name] = torch.zeros_like(key)
            maps = maps or code_maps("adam")
            values = _exact(read, fragment, number, maps[number - 1])
            state[name].view(-1).narrow(0, fragment.offset, fragment.numel).copy_(values)


def _put_blockwise(
    view: EngineView, optimizer: BlockwiseOptimizer, read: ReadChunks, steps: dict[int, int | None]
) -> None:
    kept: dict[str, set[int]] = {}
    for fragment in view.fragments:
        stop = fragment.start + fragment.numel
        for chunk in read("exact1", fragment.name, fragment.start, stop):
            last = chunk.start + len(chunk.values) - 1
            blocks = range(chunk.start // BLOCK, last // BLOCK + 1)
            kept.setdefault(fragment.name, set()).update(blocks)
    optimizer.place(view.keys, view.fragments, view.widths, kept)
    maps = code_maps(optimizer.rule)
    for flat, key in enumerate(view.keys):
        if steps.get(flat) is None:
            continue
        state = optimizer.begin(key)
        state["step"] = steps[flat]
        for piece in optimizer.layouts[key].pieces:
            for number, code_map in enumerate(maps, 1):
                _put_piece(state, piece, number, read, code_map)


def _put_piece(state: dict, piece: Piece, number: int, read: ReadChunks, code_map: Tensor) -> None:
    fragment = piece.fragment
    if piece.bits == 32:
        values = _exact(read, fragment, number, code_map)
        state[f"exact{number}"].narrow(0, piece.offset, fragment.numel).copy_(values)
        return
    stop = fragment.start + fragment.numel
    codes = _joined(
        read(f"codes{number}", fragment.name, fragment.start, stop), fragment, torch.uint8
    )
    state[f"codes{number}"].narrow(0, piece.offset, fragment.numel).copy_(codes)
    scales = _scales(read, fragment, number)
    state[f"absmax{number}"].narrow(0, piece.block, piece.num_blocks).copy_(scales)


def _exact(read: ReadChunks, fragment: Fragment, number: int, code_map: Tensor) -> Tensor:
    """A moment in 32 bits, from chunks of either kind."""
    stop = fragment.start + fragment.numel
    chunks = read(f"exact{number}", fragment.name, fragment.start, stop)
    for chunk in read(f"codes{number}", fragment.name, fragment.start, stop):
        part = fragment.cut(chunk.start, chunk.start + len(chunk.values))
        places = torch.arange(part.start, part.start + part.numel) // BLOCK - part.start // BLOCK
        scales = _scales(read, part, number)[places]
        chunks.append(
            Chunk("exact", chunk.name, chunk.start, code_map[chunk.values.int()] * scales)
        )
    return _joined(chunks, fragment, torch.float32)


def _scales(read: ReadChunks, fragment: Fragment, number: int) -> Tensor:
    low, high = fragment.start // BLOCK, -(-(fragment.start + fragment.numel) // BLOCK)
    blocks = Fragment(fragment.name, -(-fragment.total // BLOCK), low, high - low, 0, 0)
    return _joined(read(f"absmax{number}", fragment.name, low, high), blocks, torch.float32)


def _joined(chunks: list[Chunk], fragment: Fragment, dtype: torch.dtype) -> Tensor:
    """The values of a whole fragment."""
    found = sum(len(chunk.values) for chunk in chunks)
    if found != fragment.numel:
        raise ValueError(
            f"{fragment.name}: {found} of the elements {fragment.start} to "
            f"{fragment.start + fragment.numel} are stored"
        )
    values = torch.empty(fragment.numel, dtype=dtype)
    for chunk in chunks:
        values.narrow(0, chunk.start - fragment.start, len(chunk.values)).copy_(chunk.values)
    return values
