"""The files of one checkpoint, and reading them from any layout of ranks.

    step_000100/
        rank_00000.safetensors   the chunks that a rank keeps: masters, moments (pipeline.engine.logical)
        rank_00000.json          which these are, and the checksum of the file
        index.json               the same of all ranks together, by kind and parameter; shapes; step counts
        state.json               step, MLflow run, configuration, data state, frozen towers, ...; size and
                                 sha256 of the files above, and its own sha256: written last

In a store (s3://...) the folder has the number of the attempt behind its name, and state.json makes it
whole; on a disk it has a name that begins with a dot until it is renamed.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from data_prep.storage import Folder
from pipeline.engine.logical import Chunk

STATE, INDEX = "state.json", "index.json"
DTYPES = {
    **dict.fromkeys(("master", "exact1", "exact2", "absmax1", "absmax2"), "<f4"),
    **dict.fromkeys(("codes1", "codes2"), "u1"),
}


class BrokenCheckpointError(Exception):
    """A checkpoint whose files are not what was written; the message names one of them and why."""


def rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def rank_table(rank: int) -> str:
    return f"rank_{rank:05d}.json"


def write_chunks(path: Path, chunks: Iterable[Chunk]) -> dict:
    """Write the file of a rank, on a local disk.

    Returns:
        its table: ``bytes``, ``sha256`` and ``chunks``, lists of kind, name, start, numel, byte offset.
    """
    found = {f"{c.kind}|{c.start}|{c.name}": c.values for c in chunks}
    save_file(found, path)
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    table = []
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        kind, start, name = key.split("|", 2)
        offset = 8 + header_bytes + entry["data_offsets"][0]
        table.append([kind, name, int(start), math.prod(entry["shape"]), offset])
    return {"bytes": path.stat().st_size, "sha256": sha256, "chunks": table}


def join_tables(tables: list[dict], shapes: dict[str, tuple[int, ...]]) -> dict:
    """The index of all ranks' tables.

    Raises:
        ValueError: a logical parameter is not whole.
    """
    chunks: dict[str, dict[str, list]] = {}
    steps: dict[str, int] = {}
    for rank, table in enumerate(tables):
        steps |= table["steps"]
        for kind, name, start, numel, offset in table["chunks"]:
            entry = [start, numel, rank, offset]
            chunks.setdefault(kind, {}).setdefault(name, []).append(entry)
    for names in chunks.values():
        for entries in names.values():
            entries.sort()
    for name, shape in shapes.items():
        stored = sum(entry[1] for entry in chunks.get("master", {}).get(name, ()))
        if stored != math.prod(shape):
            raise ValueError(f"{stored} of {math.prod(shape)} elements of {name} would be stored")
    shapes = {name: list(shape) for name, shape in shapes.items()}
    return {"shapes": shapes, "steps": steps, "chunks": chunks}


def encode_state(state: dict) -> bytes:
    """state.json, with its own checksum."""
    return json.dumps(state | {"sha256": _state_sum(state)}, indent=1).encode()


def decode_state(data: bytes) -> dict:
    """What `encode_state` encoded.

    Raises:
        BrokenCheckpointError: it is something else.
    """
    try:
        state = json.loads(data)
        stored = state.pop("sha256")
    except (ValueError, KeyError, AttributeError) as error:
        raise BrokenCheckpointError(f"{STATE} cannot be read: {error!r}") from None
    if stored != _state_sum(state):
        raise BrokenCheckpointError(f"{STATE} has another checksum than was written")
    return state


def _state_sum(state: dict) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


class Checkpoint:
    """A whole checkpoint to read from. From a store, files come to the local disk when they are read.

    Args:
        store: folder of all checkpoints of the run.
        name: of this one in it.

    Raises:
        BrokenCheckpointError: state.json is not what was written.
        OSError: it cannot be read.
    """

    def __init__(self, store: Folder, name: str) -> None:
        self.store = store
        self.name = name
        self.state = decode_state(store.read(f"{name}/{STATE}"))
        self._maps: dict[int, np.memmap] = {}
        self._copies: tempfile.TemporaryDirectory | None = None

    def __str__(self) -> str:
        return f"{self.store.url}/{self.name}"

    @property
    def step(self) -> int:
        return self.state["step"]

    @cached_property
    def index(self) -> dict:
        return json.loads(self.store.read(f"{self.name}/{INDEX}"))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all logical parameters that are stored."""
        return {name: tuple(shape) for name, shape in self.index["shapes"].items()}

    @property
    def steps(self) -> dict[str, int]:
        """Steps that the moments of each of them have seen."""
        return self.index["steps"]

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Compare every `parts`-th file with what was written.

        Raises:
            BrokenCheckpointError: one of them differs.
        """
        for name, written in sorted(self.state["files"].items())[part::parts]:
            path = f"{self.name}/{name}"
            try:
                if self.store.size(path) != written["bytes"]:
                    size = self.store.size(path)
                    raise BrokenCheckpointError(f"{name} has {size} bytes of {written['bytes']}")
                with self.store.open(path) as file:
                    digest = hashlib.sha256()
                    while block := file.read(1 << 22):
                        digest.update(block)
            except OSError as error:
                raise BrokenCheckpointError(f"{name} cannot be read: {error}") from None
            if digest.hexdigest() != written["sha256"]:
                raise BrokenCheckpointError(f"{name} has another checksum than was written")

    def read(self, kind: str, name: str, low: int, high: int) -> list[Chunk]:
        """Stored chunks of a logical parameter that overlap ``low`` to ``high``, cut to them.

        Elements, or blocks for scales.
        """
        found = []
        for start, numel, rank, offset in self.index["chunks"].get(kind, {}).get(name, ()):
            first, last = max(low, start), min(high, start + numel)
            if first < last:
                dtype = np.dtype(DTYPES[kind])
                begin = offset + (first - start) * dtype.itemsize
                data = self._map(rank)[begin : begin + (last - first) * dtype.itemsize]
                found.append(Chunk(kind, name, first, torch.from_numpy(data.view(dtype).copy())))
        return found

    def weights(self) -> dict[str, Tensor]:
        """Masters of all trained parameters, fp32, in the shapes of the undivided model."""
        found = {}
        for name, shape in self.shapes.items():
            chunks = self.read("master", name, 0, math.prod(shape))
            found[name] = torch.cat([chunk.values for chunk in chunks]).view(shape)
        return found

    def close(self) -> None:
        """Let go of the files, and of local copies."""
        self._maps.clear()
        if self._copies is not None:
            self._copies.cleanup()
            self._copies = None

    def _map(self, rank: int) -> np.memmap:
        if rank not in self._maps:
            name = rank_file(rank)
            if self.store.is_local:
                path = self.store.path / self.name / name
            else:
                if self._copies is None:
                    self._copies = tempfile.TemporaryDirectory(prefix="roseate-checkpoint-")
                path = Path(self._copies.name) / name
                self.store.download(f"{self.name}/{name}", path)
            self._maps[rank] = np.memmap(path, np.uint8, "r")
        return self._maps[rank]
