"""Reading by index equals reading the tar; selections and the held-out part; what has changed is refused."""

import os
import pickle
import resource
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep.bitmap import write_bitmap
from data_prep.errors import ConfigError
from data_prep.schema import load_manifest
from data_prep.storage import Folder
from pipeline.data import dataset as dataset_module
from pipeline.data.dataset import Dataset, UnusableSampleError
from pipeline.data.recent import files_at_once
from pipeline.data.remote import RemoteShards
from tests.helpers.dataset import write_dataset
from tests.unit.pipeline.data.conftest import interleaved, pair

SIZES = [25, 1, 0, 30, 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset") / "pairs"
    write_dataset(folder, SIZES, pair)
    return folder


def keys(dataset: Dataset) -> list[str]:
    return [dataset.read(n).key for n in range(len(dataset))]


def test_every_sample_is_that_of_the_tar(folder):
    dataset = Dataset(str(folder), "k")
    assert len(dataset) == 60 and dataset.counts.tolist() == SIZES
    plain = [
        sample
        for tar in sorted((folder / "shards").glob("*.tar"))
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False)
    ]
    assert len(plain) == 60
    for number, sample in enumerate(plain):
        raw = dataset.read(number)
        assert raw.parts == [sample["jpg"], sample["txt"].decode()]
        assert raw.key == f"pairs/{sample['__key__']}"


def test_many_spans_are_as_each_alone(folder):
    dataset = Dataset(str(folder), "k")
    places = [dataset.place(n) for n in (59, 0, 25, 26, 3)]
    together = [dataset.parse(span).key for span in dataset.read_spans(places)]
    assert together == [dataset.read(n).key for n in (59, 0, 25, 26, 3)]


def test_interleaved_documents_come_in_reading_order(tmp_path):
    write_dataset(tmp_path / "docs", [5], interleaved)
    raw = Dataset(str(tmp_path / "docs"), "k").read(2)
    assert [type(part) for part in raw.parts] == [str, bytes, str, bytes, str, bytes, str]
    assert raw.parts[0] == "doc 2" and len(raw.images) == 3


def test_selections_keep_what_all_of_them_keep(folder):
    manifest = load_manifest(folder, "k")
    kept = np.random.default_rng().random((2, 60)) < 0.6
    starts = np.cumsum([0, *SIZES])
    for name, keep in zip(("sharp", "english"), kept, strict=True):
        parts = [keep[a:b] for a, b in zip(starts, starts[1:], strict=False)]
        write_bitmap(Folder(str(folder), "k"), manifest, name, parts, "drawn")
    both = Dataset(str(folder), "k", bitmaps=["sharp", "english"])
    expected = np.flatnonzero(kept[0] & kept[1])
    assert keys(both) == [f"pairs/{n:09d}" for n in expected]
    prints = {
        Dataset(str(folder), "k", bitmaps=b).fingerprint
        for b in ([], ["sharp"], ["english"], ["sharp", "english"])
    }
    assert len(prints) == 4


def test_held_out_fraction_divides_without_overlap(folder):
    kept = Dataset(str(folder), "k", held_out_fraction=0.3)
    apart = Dataset(str(folder), "k", held_out_fraction=0.3, held_out=True)
    assert len(kept) + len(apart) == 60 and len(apart) > 3
    assert not set(keys(kept)) & set(keys(apart))


def test_nothing_left_is_refused(folder):
    with pytest.raises(ConfigError, match="at least one sample is kept") as caught:
        Dataset(str(folder), "data.sources.a", held_out_fraction=1e-9, held_out=True)
    assert caught.value.problems[0].key == "data.sources.a.path"


def test_an_unknown_selection_is_refused_by_name(folder):
    with pytest.raises(ConfigError, match="data.sources.a.bitmaps = 'nowhere'"):
        Dataset(str(folder), "data.sources.a", bitmaps=["nowhere"])


def test_a_worker_gets_no_open_files(folder):
    dataset = Dataset(str(folder), "k")
    first = dataset.read(0)
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(dataset._file) == 1 and len(copy._file) == 0 and copy.read(0) == first


def test_a_tar_that_has_changed_is_refused(tmp_path):
    write_dataset(tmp_path / "a", [3], pair)
    tar = tmp_path / "a/shards/000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(OSError, match="was changed after it was indexed; .*roseate index --again"):
        Dataset(str(tmp_path / "a"), "k").read(0)


def test_an_index_of_another_shape_is_refused(tmp_path):
    write_dataset(tmp_path / "a", [3], pair)
    np.save(tmp_path / "a/index/000000.npy", np.zeros(3))
    with pytest.raises(OSError, match="is not the index that the manifest names"):
        Dataset(str(tmp_path / "a"), "k").read(0)


@pytest.mark.parametrize("damage", [b"\0" * 512, b"x" * 512])
def test_a_sample_that_was_overwritten_is_named(tmp_path, damage):
    write_dataset(tmp_path / "a", [3], pair)
    dataset = Dataset(str(tmp_path / "a"), "k")
    start = int(dataset.record(0, 1)["offset"])
    with (tmp_path / "a/shards/000000.tar").open("r+b") as file:
        file.seek(start)
        file.write(damage)
    dataset.read(0), dataset.read(2)
    with pytest.raises(UnusableSampleError, match="a/000000/row 1"):
        dataset.read(1)


def test_opening_costs_nothing_for_a_large_dataset(folder, monkeypatch):
    opened = []
    load, open_ = np.load, os.open
    monkeypatch.setattr(np, "load", lambda *a, **k: opened.append(a) or load(*a, **k))
    monkeypatch.setattr(os, "open", lambda *a, **k: opened.append(a) or open_(*a, **k))
    dataset = Dataset(str(folder), "k")
    assert not opened
    dataset.read(0)
    assert len(opened) == 2
    assert Path(str(opened[0][0])).name == "000000.npy"


def test_a_storage_that_gives_less_than_asked_is_an_error(folder, monkeypatch):
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, start: real(file, size - 512, start))
    with pytest.raises(OSError, match="pairs/000000/row 3: the storage gave .* of .* bytes"):
        Dataset(str(folder), "k").read(3)


def test_files_in_use_stay_within_the_limit_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "files_at_once", lambda: 8)
    write_dataset(tmp_path / "many", [2] * 40, pair)
    dataset = Dataset(str(tmp_path / "many"), "k")

    def open_here():
        """Other threads of the process open files, too."""
        found = 0
        for number in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                found += os.readlink(f"/proc/self/fd/{number}").startswith(str(tmp_path))
        return found

    for number in np.random.default_rng().permutation(80):
        assert dataset.read(int(number)).key.endswith(f"{number:09d}")
        assert 0 < open_here() <= 16  # a tar and an index each


def test_the_soft_limit_of_files_is_raised():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        assert 8 <= files_at_once() <= 512
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_held_out_of_a_large_dataset_is_worked_out_once(folder, tmp_path, monkeypatch):
    small = [Dataset(str(folder), "k", held_out_fraction=0.3, held_out=h) for h in (False, True)]
    monkeypatch.setattr(dataset_module, "SAMPLES_IN_MEMORY", 10)
    remote = RemoteShards("shards", tmp_path, 10**9)

    def make(held_out: bool) -> Dataset:
        share = {"held_out_fraction": 0.3, "held_out": held_out}
        return Dataset(str(folder), "k", remote=remote, **share)

    large = [make(False), make(True)]
    assert [keys(d) for d in large] == [keys(d) for d in small]
    assert [d.fingerprint for d in large] == [d.fingerprint for d in small]
    monkeypatch.setattr(Dataset, "_bits_apart", lambda *_: pytest.fail("read the index again"))
    assert keys(make(True)) == keys(small[1])


def test_a_source_gives_its_name_to_its_samples(folder):
    assert Dataset(str(folder), "k", name="laion").read(0).key == "laion/000000000"
