"""Builds a small web of scenes, with URL tables in the layouts of the field and some trouble."""

import io
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.examples.scenes import make_held_out_scene, make_training_scene, render
from data_prep.schema import Status

# What goes wrong on this web, and how the row must end. One row in _TROUBLE_EVERY, in turn.
TROUBLE = {
    "dead": Status.HTTP_404,
    "html": Status.WRONG_CONTENT_TYPE,
    "truncated": Status.UNDECODABLE,
    "slow": Status.OK,
    "redirect": Status.OK,
    "rotated": Status.OK,
    "duplicate": Status.OK,
}
_TROUBLE_EVERY = 25
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Row:
    """One row of a URL table, and how an ingest of it must end."""

    url: str
    caption: str
    status: Status
    trouble: str | None = None


def build_scene_web(
    folder: str | Path,
    *,
    scenes: int,
    held_out: int,
    seed: int,
    base_url: str,
    size: int = 64,
    quality: int = 92,
) -> dict[str, dict[str, int]]:
    """Draws scenes and writes the tables that point at them.

    The training rows go half to `laion.parquet` (LAION schema) and half to `cc12m.tsv` (headerless
    url<TAB>caption); one row in 25 is trouble (see `TROUBLE`). `held_out.parquet` is clean and
    holds only scenes that training never shows.

    Args:
        folder: where images and tables go; what `SceneWeb` then serves.
        scenes: training rows, in both tables together.
        held_out: rows of `held_out.parquet`.
        seed: of the scenes and their positions.
        base_url: where the folder will be served, e.g. "http://127.0.0.1:8123".
        size: side of the images, pixels.
        quality: JPEG quality of the images.

    Returns:
        for each table (laion, cc12m, held_out) the rows per status an ingest must end with.
    """
    folder = Path(folder)
    base_url = base_url.rstrip("/")
    rows: dict[str, list[Row]] = {"laion": [], "cc12m": [], "held_out": []}
    split = {"laion": (scenes + 1) // 2, "cc12m": scenes // 2, "held_out": held_out}
    number = 0
    for table, count in split.items():
        (folder / table).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            scene_seed = seed * 10_000_000 + number
            number += 1
            path = f"{table}/{i:06d}.jpg"
            trouble = None
            if table != "held_out" and i % _TROUBLE_EVERY == _TROUBLE_EVERY // 2:
                trouble = [*TROUBLE][i // _TROUBLE_EVERY % len(TROUBLE)]
            make = make_held_out_scene if table == "held_out" else make_training_scene
            scene = make(scene_seed)
            caption = scene.caption
            if trouble == "duplicate":
                # The row before is never trouble itself, so its file is a plain scene.
                data = (folder / f"{table}/{i - 1:06d}.jpg").read_bytes()
                caption = rows[table][-1].caption
            else:
                data = _encode(render(scene, size), quality, rotated=trouble == "rotated")
            if trouble == "truncated":
                data = data[: len(data) * 6 // 10]
            (folder / path).write_bytes(data)
            prefix = f"{trouble}/" if trouble in ("dead", "html", "slow", "redirect") else ""
            status = TROUBLE[trouble] if trouble else Status.OK
            rows[table].append(Row(f"{base_url}/{prefix}{path}", caption, status, trouble))
    write_laion_table(folder / "laion.parquet", rows["laion"], size=size, seed=seed)
    write_cc12m_table(folder / "cc12m.tsv", rows["cc12m"])
    write_laion_table(folder / "held_out.parquet", rows["held_out"], size=size, seed=seed)
    return {name: dict(Counter(str(r.status) for r in table)) for name, table in rows.items()}


def _encode(image: Image.Image, quality: int, *, rotated: bool) -> bytes:
    buffer = io.BytesIO()
    if rotated:  # as a camera held upright stores it: lying pixels, and a note to turn them
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
        image.save(buffer, "JPEG", quality=quality, exif=exif)
    else:
        image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_laion_table(path: Path, rows: list[Row], *, size: int, seed: int) -> None:
    """Writes a parquet table with the columns of LAION-400M."""
    rng = random.Random(f"laion {seed}")
    count = len(rows)
    table = pa.table(
        {
            "SAMPLE_ID": pa.array(range(count), pa.int64()),
            "URL": pa.array([r.url for r in rows], pa.string()),
            "TEXT": pa.array([r.caption for r in rows], pa.string()),
            "HEIGHT": pa.array([size] * count, pa.int32()),
            "WIDTH": pa.array([size] * count, pa.int32()),
            "LICENSE": pa.array(["?"] * count, pa.string()),
            "NSFW": pa.array(["UNLIKELY"] * count, pa.string()),
            "similarity": pa.array([rng.uniform(0.3, 0.45) for _ in rows], pa.float64()),
        }
    )
    pq.write_table(table, path)


def write_cc12m_table(path: Path, rows: list[Row]) -> None:
    """Writes a headerless TSV, url<TAB>caption, as CC12M is published."""
    path.write_text("".join(f"{r.url}\t{r.caption}\n" for r in rows), encoding="utf-8")
