import io

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from data_prep.examples.scenes import (
    held_out,
    make_held_out_scene,
    make_training_scene,
    parse_caption,
    render,
)
from data_prep.examples.tables import build_scene_web


def test_the_tables_have_the_layouts_of_the_field(scene_web):
    laion = pq.read_table(scene_web.folder / "laion.parquet")
    assert laion.column_names[:3] == ["SAMPLE_ID", "URL", "TEXT"]
    lines = (scene_web.folder / "cc12m.tsv").read_text().splitlines()
    assert len(laion) == len(lines) == 180
    assert all(line.startswith(scene_web.base_url) and line.count("\t") == 1 for line in lines)
    for name in ("laion", "cc12m"):
        assert sum(scene_web.expected[name].values()) == 180
        assert set(scene_web.expected[name]) == {
            "ok",
            "http_404",
            "wrong_content_type",
            "undecodable",
        }
    assert scene_web.expected["held_out"] == {"ok": 20}


def test_a_rotated_photo_shows_its_scene_and_a_duplicate_its_original(tmp_path):
    build_scene_web(tmp_path, scenes=360, held_out=1, seed=3, base_url="http://x")
    rows = pq.read_table(tmp_path / "laion.parquet").to_pylist()
    rotated, duplicate = 12 + 25 * 5, 12 + 25 * 6
    stored = Image.open(tmp_path / f"laion/{rotated:06d}.jpg")
    assert stored.getexif()[0x0112] == 6
    turned = np.asarray(ImageOps.exif_transpose(stored)).astype(int)
    scene = make_training_scene(3 * 10_000_000 + rotated)
    assert scene.caption == rows[rotated]["TEXT"]
    assert np.abs(turned - np.asarray(render(scene)).astype(int)).mean() < 3
    files = [tmp_path / f"laion/{i:06d}.jpg" for i in (duplicate - 1, duplicate)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert rows[duplicate]["TEXT"] == rows[duplicate - 1]["TEXT"]


def test_held_out_rows_are_held_out_and_training_rows_are_not(tmp_path):
    build_scene_web(tmp_path, scenes=60, held_out=10, seed=7, base_url="http://x/")
    texts = pq.read_table(tmp_path / "held_out.parquet")["TEXT"].to_pylist()
    assert texts == [make_held_out_scene(70_000_060 + i).caption for i in range(10)]
    assert held_out(make_held_out_scene(70_000_060))
    first = pq.read_table(tmp_path / "laion.parquet").to_pylist()[0]
    assert first["URL"] == "http://x/laion/000000.jpg"
    assert parse_caption(first["TEXT"])
    image = Image.open(io.BytesIO((tmp_path / "laion/000000.jpg").read_bytes()))
    assert (image.format, image.size) == ("JPEG", (64, 64))
