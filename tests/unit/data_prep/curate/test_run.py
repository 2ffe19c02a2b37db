"""Whole curations of small datasets whose copies, texts and columns are known."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from data_prep.bitmap import read_bitmap, write_bitmap
from data_prep.curate.config import CurateConfig
from data_prep.curate.datasets import Source
from data_prep.curate.run import PAGE, curate
from data_prep.errors import ConfigError
from data_prep.schema import load_manifest
from data_prep.storage import Folder
from tests.helpers.dataset import write_dataset
from tests.helpers.s3 import s3_bucket


def picture(number: int, quality: int = 90, side: int = 64) -> bytes:
    """The same for the same number but for how it is encoded."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.resize((side, side)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def sample(image: bytes, text: str, **told: object) -> dict[str, bytes]:
    return {"jpg": image, "txt": text.encode(), "json": json.dumps(told).encode()}


@pytest.fixture
def root(tmp_path):
    """In a, 5 shows what 3 shows, and 6 to 8 have one text; b shows some of a; apart shows some of both."""
    numbers = [0, 1, 2, 3, 4, 3, 6, 7, 8, 9]
    texts = [f"text {n}" for n in range(10)]
    texts[6] = texts[7] = texts[8] = "Image not available"
    a = [
        sample(picture(n, 60 + place), texts[place], similarity=place / 10)
        for place, n in enumerate(numbers)
    ]
    b = [sample(picture(n, 95, 80), f"b {n}") for n in (20, 1, 21, 9, 30)]
    b[0]["jpg"] = b"no image"
    apart = [sample(picture(n, 70), "held out") for n in (21, 0)]
    write_dataset(tmp_path / "a", [4, 0, 6], lambda row: a[row])
    write_dataset(tmp_path / "b", [5], lambda row: b[row])
    write_dataset(tmp_path / "apart", [2], lambda row: apart[row])
    return tmp_path


def sources(root, *names: str, **more: tuple[str, ...]) -> list[Source]:
    found = [Source(n, f"data.sources.{n}", str(root / n), more.get(n, ())) for n in names or "ab"]
    return [*found, Source("held", "data.held_out", str(root / "apart"), is_apart=True)]


def config(root, **settings: object) -> CurateConfig:
    return CurateConfig(folder=str(root / "curation"), **settings)


def kept(root, name: str, selection: str = "curated") -> list[int]:
    """Numbers of the samples of a dataset that a selection keeps."""
    folder = Folder(str(root / name), "k")
    manifest = load_manifest(folder, "k")
    bitmap, _ = read_bitmap(folder, manifest, selection, "k")
    starts = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
    shards = range(len(manifest.shards))
    return [int(starts[shard] + slot) for shard in shards for slot in bitmap.kept(shard)]


def refused(root, settings: dict, *names: str, **more) -> list:
    with pytest.raises(ConfigError) as error:
        curate(sources(root, *names, **more), config(root, **settings), workers=1)
    return error.value.problems


def test_rules_leave_out_what_breaks_them_and_say_so(root):
    advanced = []
    summary = curate(
        sources(root),
        config(root, same_text=2),
        workers=2,
        advance=lambda *told: advanced.append(told),
    )
    assert kept(root, "a") == [1, 2, 3, 4, 6, 7, 9] and kept(root, "b") == [4]
    a, b = (summary["sources"][name] for name in "ab")
    assert a["left_out"] == {"apart_from": 1, "similar_images": 1, "same_text": 1}
    assert b["left_out"] == {"unreadable": 1, "apart_from": 1, "similar_images": 2}
    assert (a["samples"], a["kept"], b["kept"]) == (10, 7, 1)
    assert advanced[-1] == (17, 17)
    page = (root / "curation" / PAGE).read_text()
    for text in ("<b>7</b> of <b>10</b>", "similar_images", "held/0000", "Similar to an earlier"):
        assert text in page
    assert summary["page"] == str(root / "curation" / PAGE)
    note = json.loads((root / "a" / "bitmaps" / "curated.json").read_text())
    assert note["made_by"] == 'roseate curate {"same_text": 2}' and note["kept"] == 7
    assert not (root / "apart" / "bitmaps").exists()


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"similar_images": False}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"characters": {"max": 6}}, [1, 2, 3, 4, 9]),
        ({"characters": {"min": 7}}, [6, 7, 8]),
        ({"columns": {"similarity": {"min": 0.3, "max": 0.6}}}, [3, 4, 6]),
        ({"width": {"min": 64}, "height": {"max": 64}}, [1, 2, 3, 4, 6, 7, 8, 9]),
    ],
)
def test_each_rule(root, settings, left):
    curate(sources(root, "a"), config(root, **settings), workers=1)
    assert kept(root, "a") == left


def test_what_a_rule_leaves_out_stands_for_nothing_that_looks_like_it(root):
    curate(sources(root, "a"), config(root, columns={"similarity": {"min": 0.4}}), workers=1)
    assert kept(root, "a") == [4, 5, 6, 7, 8, 9], "5 looks like 3, which is not there"


def test_other_selections_of_a_source_count_and_its_own_does_not(root):
    folder = Folder(str(root / "a"), "k")
    keep = np.ones(10, bool)
    keep[3] = False
    parts = [keep[:4], keep[4:4], keep[4:]]
    write_bitmap(folder, load_manifest(folder, "k"), "mine", parts, "a test")
    summary = curate(sources(root, "a", a=("mine",)), config(root, name="second"), workers=1)
    assert kept(root, "a", "second") == [1, 2, 4, 5, 6, 7, 8, 9]
    assert summary["sources"]["a"]["left_out"] == {"bitmaps": 1, "apart_from": 1}


def test_other_rules_read_no_tar_again(root):
    first = curate(sources(root), config(root), workers=1, dry_run=True)
    assert not (root / "a" / "bitmaps").exists() and not first["written"]
    advanced = []
    shutil.rmtree(root / "a" / "shards")
    again = curate(
        sources(root),
        config(root, characters={"max": 6}),
        workers=1,
        advance=lambda *told: advanced.append(told),
    )
    assert again["sources"]["a"]["kept"] == 5 and advanced == []
    assert kept(root, "a") == [1, 2, 3, 4, 9]
    assert "cannot be read now" in (root / "curation" / PAGE).read_text()


def test_processes_divide_the_shards_and_the_first_decides(root):
    found, failed = {}, []

    def run(rank):
        try:
            found[rank] = curate(sources(root), config(root), workers=1, rank=rank, world_size=2)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed and found[1] is None and found[0]["sources"]["a"]["kept"] == 8
    assert kept(root, "a") == [1, 2, 3, 4, 6, 7, 8, 9]


def test_many_shards_need_few_files_at_a_time(tmp_path):
    write_dataset(tmp_path / "a", [1] * 300, lambda row: sample(picture(row % 250), f"{row}"))
    source = Source("a", "data.sources.a", str(tmp_path / "a"))
    curate([source], config(tmp_path), workers=1, dry_run=True)
    code = (
        "import resource, sys\n"
        "from data_prep.curate.config import CurateConfig\n"
        "from data_prep.curate.datasets import Source\n"
        "from data_prep.curate.run import curate\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "source = Source('a', 'data.sources.a', sys.argv[1] + '/a')\n"
        "config = CurateConfig(folder=sys.argv[1] + '/curation', same_text=1, width={'min': 1})\n"
        "print(curate([source], config, workers=1)['sources']['a']['kept'])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "250\n"


def test_one_folder_for_two_sources_is_refused(root):
    twice = [
        Source("one", "data.sources.one", str(root / "a")),
        Source("two", "data.sources.two", f"{root / 'a'}/"),
    ]
    with pytest.raises(ConfigError) as error:
        curate(twice, config(root), workers=1)
    (problem,) = error.value.problems
    assert problem.key == "data.sources.two" and "than that of data.sources.one" in problem.rule


def test_what_is_held_out_of_the_same_folder_is_left_out_and_nothing_else(root):
    folder = Folder(str(root / "a"), "k")
    keep = np.zeros(10, bool)
    keep[[3, 9]] = True
    manifest = load_manifest(folder, "k")
    write_bitmap(folder, manifest, "validation", [keep[:4], keep[4:4], keep[4:]], "a test")
    apart = Source("held", "data.held_out", str(root / "a"), ("validation",), is_apart=True)
    curate([*sources(root, "a")[:1], apart], config(root), workers=1)
    assert kept(root, "a") == [0, 1, 2, 4, 6, 7, 8], "5 looks like 3"


def test_datasets_in_an_object_store_get_their_selections_there(root):
    with s3_bucket() as bucket:
        url = bucket.upload(root / "a")
        away = [Source("a", "data.sources.a", url)]
        summary = curate(away, config(root), workers=1)
        assert summary["sources"]["a"]["left_out"] == {"similar_images": 1}
        folder = Folder(url, "k")
        bitmap, _ = read_bitmap(folder, load_manifest(folder, "k"), "curated", "k")
        assert bitmap.counts().tolist() == [4, 0, 5]


def test_folders_that_cannot_be_read_are_all_named(root):
    one, two = refused(root, {}, "none", "a", "neither")
    assert (one.key, two.key) == ("data.sources.none", "data.sources.neither")
    assert "must exist" in one.rule


def test_a_selection_that_is_not_there_is_named(root):
    (problem,) = refused(root, {}, "a", a=("mine",))
    assert (problem.key, problem.value) == ("data.sources.a.bitmaps", "mine")


def test_a_column_that_nothing_has_is_named(root):
    (problem,) = refused(root, {"columns": {"similarty": {"min": 0.2}}})
    assert problem.key == "curate.columns.similarty" and "a, b has none" in problem.rule
    assert "keep_columns" in problem.remedy
    assert not (root / "a" / "bitmaps").exists()


def test_rules_that_nothing_keeps_are_refused_with_what_they_leave_out(root):
    (problem,) = refused(root, {"characters": {"min": 100}}, "a")
    assert problem.key == "data.sources.a" and "characters 10" in problem.rule
    assert not (root / "a" / "bitmaps").exists()


def test_a_shard_that_is_gone_is_named(root):
    (root / "a" / "shards" / "000002.tar").unlink()
    (problem,) = refused(root, {}, "a")
    assert problem.key == "data.sources.a" and "000002.tar" in problem.rule


@pytest.mark.parametrize("content", [b"", b"no array"])
def test_an_index_that_is_broken_is_named(root, content):
    (root / "a" / "index" / "000002.npy").write_bytes(content)
    (problem,) = refused(root, {}, "a")
    assert problem.key == "data.sources.a" and "its shards can be read" in problem.rule


def test_a_folder_for_facts_that_cannot_be_written_is_named(root):
    (root / "curation").write_text("no folder")
    (problem,) = refused(root, {}, "a")
    assert problem.key == "curate.folder" and "can be written to" in problem.rule


def test_a_worker_that_is_killed_is_named(root, monkeypatch):
    monkeypatch.setattr("data_prep.curate.run.make_facts", die)
    (problem,) = refused(root, {}, "a")
    assert problem.key == "--workers" and "was killed" in problem.rule


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_that_takes_no_selection_is_named(root):
    (root / "a" / "bitmaps").write_text("no folder")
    (problem,) = refused(root, {}, "a")
    assert problem.key == "data.sources.a" and "can be written" in problem.rule
    assert "roseate index" in problem.remedy
