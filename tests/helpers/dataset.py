"""Dataset folders of drawn scenes, written without a web: for tests of everything behind ingestion."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np

from data_prep.examples.scenes import make_held_out_scene, make_training_scene, render
from data_prep.schema import INDEX_DTYPE, Manifest, ShardEntry


def write_scenes(
    folder: Path, count: int, *, held_out: bool = False, shard_rows: int = 100
) -> None:
    """`count` scenes as a dataset folder of plain WebDataset shards."""
    make = make_held_out_scene if held_out else make_training_scene
    (folder / "shards").mkdir(parents=True)
    (folder / "index").mkdir()
    entries = []
    for shard, start in enumerate(range(0, count, shard_rows)):
        rows = range(start, min(start + shard_rows, count))
        index = np.zeros(len(rows), INDEX_DTYPE)
        path = folder / "shards" / f"{shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for slot, row in enumerate(rows):
                scene = make(row)
                buffer = io.BytesIO()
                render(scene).save(buffer, "JPEG", quality=95)
                image, text = buffer.getvalue(), scene.caption.encode()
                offsets = [
                    _add(tar, f"{row:09d}.{e}", b) for e, b in (("jpg", image), ("txt", text))
                ]
                _add(tar, f"{row:09d}.json", json.dumps({"row": row}).encode())
                digest = hashlib.sha256(image).digest()[:8]
                index[slot] = (
                    offsets[0],
                    len(image),
                    offsets[1] - offsets[0],
                    len(text),
                    row,
                    int.from_bytes(digest, "little"),
                    64,
                    64,
                )
        np.save(folder / "index" / f"{shard:06d}.npy", index)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(
            ShardEntry(
                name=f"{shard:06d}",
                rows=len(rows),
                samples=len(rows),
                bytes=path.stat().st_size,
                sha256=sha,
            )
        )
    manifest = Manifest(
        source=folder.name,
        input_fingerprint="0" * 64,
        policy_hash="0" * 64,
        rows=count,
        samples=count,
        statuses={"ok": count},
        shards=entries,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member; the offset of its data."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return offset
