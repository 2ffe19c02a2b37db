"""The index of one tar: what of it can be used, and that a tar which is not whole is never taken in."""

import hashlib
import io
import json
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_prep.schema import INDEX_DTYPE, ShardEntry
from data_prep.tar_index import _record, index_tar
from data_prep.tar_members import BLOCK, sample_parts


def picture(width=6, height=4, format="JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), tuple(random.randbytes(3))).save(buffer, format)
    return buffer.getvalue()


def write_tar(path, files, format=tarfile.PAX_FORMAT) -> bytes:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            tar.addfile(info, io.BytesIO(data))
    return path.read_bytes()


def index(folder, name="a.tar"):
    """Note and index; without an index where the tar was refused."""
    (folder / "index").mkdir(exist_ok=True)
    note = index_tar(str(folder), name, folder / "index", "000000", name)
    if "error" in note:
        assert not list((folder / "index").iterdir())
        return note, None
    assert json.loads((folder / "index" / "000000.note.json").read_text()) == note
    return note, np.load(folder / "index" / "000000.npy")


def test_what_can_be_used_is_indexed_and_the_rest_has_a_status(tmp_path):
    wide, tall = picture(70, 3), picture(5, 300, "PNG")
    files = [
        ("README", b"no sample"),
        *(("k/0.JPG", wide), ("k/0.txt", "caf\u00e9".encode()), ("k/0.json", b"{}")),
        *(("k/1.txt", b"no image"), ("k/1.json", b"{}")),
        *(("k/2.jpg", wide), ("k/2.json", b"{}")),
        *(("k/3.jpg", b"no image either"), ("k/3.txt", b"t")),
        *(("k/4.jpg", wide), ("k/4.txt", b"\xff\xff")),
        *(
            ("k/5.json", b"{}"),
            ("k/5.0.txt", b"one"),
            ("k/5.10.txt", b"three"),
            ("k/5.9.png", tall),
        ),
        *(("k/5.11.jpg", wide), ("k/5.cls", b"7")),
        *(("k/._6.jpg", b"mac"), ("k/6.txt", b""), ("k/._6.txt", b"mac"), ("k/6.webp", tall)),
        *(("k/7.eps", wide), ("k/7.txt", b"t")),
    ]
    tar = write_tar(tmp_path / "a.tar", files)
    note, records = index(tmp_path)
    assert note["statuses"] == {
        "ok": 3,
        "missing_image": 2,
        "missing_caption": 1,
        "undecodable": 2,
    }
    entry = ShardEntry.model_validate(note["entry"])
    assert (entry.name, entry.path, entry.rows, entry.samples) == ("000000", "a.tar", 8, 3)
    assert (entry.bytes, entry.sha256) == (len(tar), hashlib.sha256(tar).hexdigest())
    assert records.dtype == INDEX_DTYPE
    assert records["row"].tolist() == [0, 1, 2]
    assert records[["width", "height"]].tolist() == [(70, 3), (5, 300), (5, 300)]
    assert records["text_bytes"].tolist() == [5, 8, 0]
    assert records["num_images"].tolist() == [1, 2, 1]
    samples = [sample_parts(tar[r["offset"] :][: r["bytes"]]) for r in records]
    assert samples == [
        ("k/0", [wide, "caf\u00e9"]),
        ("k/5", ["one", tall, "three", wide]),
        ("k/6", [tall, ""]),
    ]
    for record, (_, parts) in zip(records, samples, strict=True):
        image = next(part for part in parts if isinstance(part, bytes))
        assert f"{record['content_hash']:016x}" == hashlib.sha256(image).hexdigest()[:16]


def test_the_first_image_is_the_same_as_when_it_is_read(tmp_path):
    for _ in range(5):
        files = [("a.jpg", picture()), ("a.png", picture(format="PNG")), ("a.txt", b"t")]
        random.shuffle(files)
        tar = write_tar(tmp_path / "a.tar", files)
        (record,) = index(tmp_path)[1]
        parts = sample_parts(tar[record["offset"] :][: record["bytes"]])[1]
        first = hashlib.sha256(parts[0]).hexdigest()[:16]
        assert f"{record['content_hash']:016x}" == first


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_that_is_cut_off_anywhere_is_refused(tmp_path, format):
    key = "k" * (90 if format == tarfile.USTAR_FORMAT else 150)
    files = [(f"{key}{i}.{e}", d) for i in range(2) for e, d in (("jpg", picture()), ("txt", b"t"))]
    tar = write_tar(tmp_path / "whole.tar", files, format)
    content = len(tar.rstrip(b"\0"))
    end = -(-content // BLOCK) * BLOCK
    lengths = [0, 1, end, end + BLOCK - 1, *range(BLOCK, end, BLOCK), *range(100, end, 777)]
    for length in lengths:
        (tmp_path / "a.tar").write_bytes(tar[:length])
        assert index(tmp_path)[0]["error"], length
    (tmp_path / "a.tar").write_bytes(tar[: end + BLOCK])
    assert index(tmp_path)[0]["entry"]["samples"] == 2


def test_a_broken_header_in_the_middle_is_refused_and_not_taken_for_the_end(tmp_path):
    files = [(f"{i}.{e}", d) for i in range(3) for e, d in (("jpg", picture()), ("txt", b"t"))]
    tar = bytearray(write_tar(tmp_path / "a.tar", files, tarfile.USTAR_FORMAT))
    at = tar.index(b"1.txt")
    tar[at] ^= 1
    (tmp_path / "a.tar").write_bytes(tar)
    assert index(tmp_path)[0] == {"error": f"bad checksum at byte {at}"}


def test_flipped_bytes_never_raise(tmp_path):
    files = [
        (f"{'k' * 120}{i}.{e}", d) for i in range(3) for e, d in (("0.txt", b"t"), ("1.jpg", b""))
    ]
    tar = write_tar(tmp_path / "a.tar", files)
    (tmp_path / "index").mkdir()
    for _ in range(300):
        broken = bytearray(tar)
        for _ in range(random.randint(1, 10)):
            broken[random.randrange(len(broken))] = random.randrange(256)
        (tmp_path / "a.tar").write_bytes(broken)
        index_tar(str(tmp_path), "a.tar", tmp_path / "index", "000000", "a.tar")


def test_a_sample_larger_than_the_index_can_hold_is_left_out():
    text = ("k", "txt", 0, 1024, b"t")
    image = ("k", "jpg", 1024, 1 << 32, picture())
    assert _record([text, image], 0) == (None, "too_many_bytes")
    record, status = _record([text, (*image[:3], (1 << 32) - 1, image[4])], 0)
    assert status == "ok" and np.array([record], INDEX_DTYPE)["bytes"] == [(1 << 32) - 1]
    images = [(*image[:1], f"{i}.jpg", *text[2:4], b"") for i in range(1 << 16)]
    assert _record([text, *images], 0) == (None, "too_many_bytes")


def test_a_tar_without_samples_is_whole(tmp_path):
    write_tar(tmp_path / "a.tar", [])
    note, records = index(tmp_path)
    assert (note["entry"]["samples"], note["statuses"], len(records)) == (0, {}, 0)
    assert records.dtype == INDEX_DTYPE


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "No such file" in index(tmp_path)[0]["error"]
