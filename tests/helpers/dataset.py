"""Dataset folders of drawn scenes, written without a web: for tests of everything behind ingestion."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.examples.scenes import make_held_out_scene, make_training_scene, render
from data_prep.schema import INDEX_DTYPE, Manifest, ShardEntry


def write_scenes(
    folder: Path, count: int, *, held_out: bool = False, shard_rows: int = 100
) -> None:
    """`count` scenes as a dataset folder of plain WebDataset shards."""
    make = make_held_out_scene if held_out else make_training_scene

    def sample(row: int) -> dict[str, bytes]:
        scene = make(row)
        buffer = io.BytesIO()
        render(scene).save(buffer, "JPEG", quality=95)
        json_ = json.dumps({"row": row}).encode()
        return {"jpg": buffer.getvalue(), "txt": scene.caption.encode(), "json": json_}

    sizes = [min(shard_rows, count - start) for start in range(0, count, shard_rows)]
    write_dataset(folder, sizes, sample)


def write_dataset(
    folder: Path, sizes: list[int], sample: Callable[[int], dict[str, bytes]]
) -> None:
    """A dataset folder with shards of these sizes; `sample(row)` gives members by extension."""
    (folder / "shards").mkdir(parents=True)
    (folder / "index").mkdir()
    entries, row = [], 0
    for shard, size in enumerate(sizes):
        index = np.zeros(size, INDEX_DTYPE)
        path = folder / "shards" / f"{shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for slot in range(size):
                files, start = sample(row), tar.offset
                for extension, data in files.items():
                    member = tarfile.TarInfo(f"{row:09d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                images = [d for e, d in files.items() if e.endswith("jpg")]
                texts = [d for e, d in files.items() if e.endswith("txt")]
                digest = hashlib.sha256(images[0]).digest()[:8] if images else bytes(8)
                index[slot] = (
                    start,
                    tar.offset - start,
                    row,
                    int.from_bytes(digest, "big"),
                    64,
                    64,
                    sum(map(len, texts)),
                    len(images),
                )
                row += 1
        np.save(folder / "index" / f"{shard:06d}.npy", index)
        entries.append(
            ShardEntry(
                name=f"{shard:06d}",
                path=f"shards/{shard:06d}.tar",
                rows=size,
                samples=size,
                bytes=path.stat().st_size,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            )
        )
    manifest = Manifest(
        source=folder.name,
        input_fingerprint="0" * 64,
        policy_hash="0" * 64,
        rows=row,
        samples=row,
        statuses={"ok": row},
        shards=entries,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
