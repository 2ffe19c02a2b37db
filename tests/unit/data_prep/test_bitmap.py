"""Against bool arrays drawn anew on every run."""

import json

import numpy as np
import pytest

from data_prep.bitmap import read_bitmap, write_bitmap
from data_prep.errors import ConfigError
from data_prep.schema import Manifest, ShardEntry
from data_prep.storage import Folder
from tests.helpers.s3 import s3_bucket

SIZES = [0, 13, 8, 1, 0, 0, 64, 7, 1000, 0]


def make_manifest(sizes=SIZES) -> Manifest:
    shards = [
        ShardEntry(name=f"{i:06d}", path=f"{i}.tar", rows=n, samples=n, bytes=0, sha256="0" * 64)
        for i, n in enumerate(sizes)
    ]
    plan = {"source": "a", "input_fingerprint": "", "policy_hash": "", "statuses": {}}
    return Manifest(**plan, rows=sum(sizes), samples=sum(sizes), shards=shards)


def draw(sizes=SIZES) -> list[np.ndarray]:
    random = np.random.default_rng()
    return [random.random(size) < random.random() for size in sizes]


def refused(folder, manifest, name="some"):
    with pytest.raises(ConfigError) as error:
        read_bitmap(folder, manifest, name, "data.sources.a.bitmaps")
    (problem,) = error.value.problems
    assert (problem.key, problem.value) == ("data.sources.a.bitmaps", name)
    return problem


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path), "k")


@pytest.mark.parametrize("sizes", [SIZES, [3], [0, 8], [0, 0], []])
def test_what_was_written_is_read(folder, sizes):
    manifest, kept = make_manifest(sizes), draw(sizes)
    write_bitmap(folder, manifest, "some", kept, "drawn")
    bitmap, digest = read_bitmap(folder, manifest, "some", "k")
    assert bitmap.counts().tolist() == [int(k.sum()) for k in kept]
    for shard, keep in enumerate(kept):
        assert bitmap.kept(shard).tolist() == np.flatnonzero(keep).tolist()
    note = json.loads((folder.path / "bitmaps" / "some.json").read_text())
    assert note == {
        "dataset": manifest.fingerprint,
        "kept": sum(int(k.sum()) for k in kept),
        "made_by": "drawn",
        "bits": digest,
    }
    assert {p.name for p in (folder.path / "bitmaps").iterdir()} == {"some.npy", "some.json"}


def test_and_keeps_what_both_keep(folder):
    manifest, one, two = make_manifest(), draw(), draw()
    write_bitmap(folder, manifest, "one", one, "drawn")
    write_bitmap(folder, manifest, "two", two, "drawn")
    both = (
        read_bitmap(folder, manifest, "one", "k")[0] & read_bitmap(folder, manifest, "two", "k")[0]
    )
    for shard, (a, b) in enumerate(zip(one, two, strict=True)):
        assert both.kept(shard).tolist() == np.flatnonzero(a & b).tolist()
    assert both.counts().sum() == sum((a & b).sum() for a, b in zip(one, two, strict=True))


def test_another_selection_has_another_hash(folder):
    manifest, kept = make_manifest(), draw()
    digests = set()
    for name in "ab":
        write_bitmap(folder, manifest, name, kept, "drawn")
        digests.add(read_bitmap(folder, manifest, name, "k")[1])
        kept[1] = ~kept[1]
    assert len(digests) == 2


def test_a_wrong_number_of_values_is_not_written(folder):
    kept = draw()
    kept[1] = kept[1][1:]
    with pytest.raises(ValueError, match="shard 000001 has 13 samples, not 12"):
        write_bitmap(folder, make_manifest(), "some", kept, "drawn")
    with pytest.raises(ValueError, match="zip"):
        write_bitmap(folder, make_manifest(), "some", draw(SIZES[:-1]), "drawn")
    assert not list(folder.path.iterdir())


def test_a_selection_of_another_state_is_refused(folder):
    write_bitmap(folder, make_manifest(), "some", draw(), "drawn")
    problem = refused(folder, make_manifest([*SIZES, 5]))
    assert problem.rule.startswith("was made for this state of the dataset")
    assert problem.remedy == "make the selection again"


def test_bits_of_another_length_are_refused(folder):
    write_bitmap(folder, make_manifest(), "some", draw(), "drawn")
    np.save(folder.path / "bitmaps" / "some.npy", np.zeros(3, np.uint8))
    assert refused(folder, make_manifest()).rule.startswith(
        "was made for this state of the dataset"
    )


@pytest.mark.parametrize(
    ("file", "content"),
    [("npy", b""), ("npy", b"half"), ("json", b"{"), ("json", b"{}"), ("json", b"[]")],
)
def test_a_broken_file_is_refused(folder, file, content):
    write_bitmap(folder, make_manifest(), "some", draw(), "drawn")
    (folder.path / "bitmaps" / f"some.{file}").write_bytes(content)
    problem = refused(folder, make_manifest())
    assert problem.rule.startswith("can be read as a selection (")
    assert problem.remedy == "make the selection again"


def test_anything_but_bytes_is_refused(folder):
    write_bitmap(folder, make_manifest(), "some", draw(), "drawn")
    np.save(folder.path / "bitmaps" / "some.npy", np.concatenate(draw()))
    rule = "can be read as a selection (1-dimensional bool instead of bytes)"
    assert refused(folder, make_manifest()).rule == rule


def test_an_unknown_name_tells_those_there_are(folder):
    problem = refused(folder, make_manifest(), "other")
    assert problem.rule == f"is a selection in {folder.url}/bitmaps"
    assert problem.remedy == "make one by `roseate curate`"
    for name in ("large", "en.v2"):
        write_bitmap(folder, make_manifest(), name, draw(), "drawn")
    assert refused(folder, make_manifest(), "other").remedy.endswith("name one of: en.v2, large")


def test_killed_while_it_is_made_again_there_is_no_selection(folder, monkeypatch):
    """The old note never stands beside the new bits."""
    write_bitmap(folder, make_manifest(), "some", draw(), "drawn")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_bitmap(folder, make_manifest(), "some", draw(), "drawn")
    assert refused(folder, make_manifest()).remedy == "make one by `roseate curate`"


def test_it_is_read_from_a_store(folder):
    manifest, kept = make_manifest(), draw()
    write_bitmap(folder, manifest, "some", kept, "drawn")
    with s3_bucket() as bucket:
        store = Folder(bucket.upload(folder.path), "k")
        bitmap, digest = read_bitmap(store, manifest, "some", "k")
        assert digest == read_bitmap(folder, manifest, "some", "k")[1]
        assert [bitmap.kept(s).tolist() for s in range(len(SIZES))] == [
            np.flatnonzero(k).tolist() for k in kept
        ]
        assert refused(store, manifest, "other").remedy.endswith("name one of: some")
