"""Datasets in an object store read as on disk, each shard once, within the size of the cache."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from data_prep import store_files
from data_prep.errors import ConfigError
from data_prep.index_folder import index_folder
from data_prep.storage import Folder
from pipeline.batch_plan import BatchPlan
from pipeline.data.config import DataConfig
from pipeline.data.dataset import Dataset
from pipeline.data.loader import TrainStream
from pipeline.data.remote import RemoteShards
from tests.helpers.dataset import write_dataset
from tests.helpers.s3 import s3_bucket
from tests.unit.pipeline.data.conftest import pair

SIZES = [12, 1, 9, 14]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same dataset on disk and in a bucket; and one whose index alone is local."""
    root = tmp_path_factory.mktemp("remote")
    write_dataset(root / "pairs", SIZES, pair)
    with s3_bucket() as bucket:
        url = bucket.upload(root / "pairs")
        index_folder(f"{url}/shards", root / "indexed", workers=1)
        yield str(root / "pairs"), url, str(root / "indexed")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(store_files, "WAITS", (0, 0, 0))


def open_dataset(url: str, cache, read="shards", size=10**9) -> Dataset:
    return Dataset(url, "k", remote=RemoteShards(read, cache, size))


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    names, real = [], Folder.download
    monkeypatch.setattr(Folder, "download", lambda *a: names.append(a[1]) or real(*a))
    return names


@pytest.mark.parametrize("read", ["shards", "ranges"])
def test_every_sample_is_that_of_the_disk(places, tmp_path, read):
    local, *others = (open_dataset(url, tmp_path, read) for url in places)
    for other in others:
        assert len(other) == len(local) and other.is_remote and not local.is_remote
        assert [other.read(n).parts for n in range(36)] == [local.read(n).parts for n in range(36)]
    assert bool(list(tmp_path.glob("*.tar"))) == (read == "shards")


def test_each_shard_is_fetched_once_by_all_who_want_it(places, tmp_path, downloads):
    datasets = [open_dataset(places[1], tmp_path) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda d=d: [d.read(n) for n in range(36)]) for d in datasets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(downloads) == [f"shards/{n:06d}.tar" for n in range(4)]


def test_the_cache_keeps_within_its_size(places, tmp_path):
    dataset = open_dataset(places[1], tmp_path)
    largest = max(shard.bytes for shard in dataset.manifest.shards)
    small = open_dataset(places[1], tmp_path / "c", size=largest + 1)
    for number in [0, 20, 35, 1, 13, 0, 30]:
        assert small.read(number) == dataset.read(number)
        assert sum(p.stat().st_size for p in (tmp_path / "c").glob("*.tar")) <= largest + 1


def test_what_was_used_last_stays(places, tmp_path, downloads):
    dataset = open_dataset(places[1], tmp_path)
    sizes = [shard.bytes for shard in dataset.manifest.shards]
    small = open_dataset(places[1], tmp_path / "c", size=sum(sizes) - min(sizes[2:]))
    small.read(0), small.read(13), small.read(0)
    downloads.clear()
    small.read(35), small.read(0)
    assert downloads == ["shards/000003.tar"]


def test_many_downloads_at_once_keep_within_the_size(places, tmp_path):
    sizes = [shard.bytes for shard in open_dataset(places[1], tmp_path).manifest.shards]
    limit, most = 2 * max(sizes), 0
    datasets = [open_dataset(places[1], tmp_path / "c", size=limit) for _ in range(4)]
    numbers = [[0, 20, 35, 13], [35, 0, 13, 20], [20, 13, 0, 35], [13, 35, 20, 0]]
    failures = []

    def read(dataset, order):
        try:
            for n in order * 3:
                assert dataset.read(n).key.endswith(f"{n:09d}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=a) for a in zip(datasets, numbers, strict=True)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with suppress(FileNotFoundError):
            held = [p.stat().st_size for p in (tmp_path / "c").glob("*.tar")]
            most = max(most, sum(held))
    assert not failures and 0 < most <= limit


def test_a_process_that_died_while_fetching_is_in_nobodys_way(places, tmp_path):
    dataset = open_dataset(places[1], tmp_path, size=10**6)
    sha = dataset.manifest.shards[0].sha256
    (tmp_path / f"{sha}.lock").touch()
    (tmp_path / f"{sha}.partial").write_bytes(b"half of")
    with (tmp_path / f"{sha}.fetching").open("wb") as file:
        file.truncate(10**6)
    assert dataset.read(20).images and not (tmp_path / f"{sha}.fetching").exists()
    assert dataset.read(0).images and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("content", [b"", b"cut off"])
def test_a_cached_shard_that_lost_its_bytes_is_fetched_again(places, tmp_path, content):
    dataset = open_dataset(places[1], tmp_path)
    first = dataset.read(0)
    (tar,) = tmp_path.glob("*.tar")
    tar.write_bytes(content)
    assert dataset.read(0) == first


def test_a_shard_that_is_removed_before_it_is_opened_is_fetched_again(
    places, tmp_path, monkeypatch
):
    dataset, real, removed = open_dataset(places[1], tmp_path), RemoteShards._fetch, []

    def fetch(self, folder, shard, target):
        real(self, folder, shard, target)
        if not removed:
            removed.append(target)
            target.unlink()

    monkeypatch.setattr(RemoteShards, "_fetch", fetch)
    assert dataset.read(0).images and removed


def test_an_ending_process_does_not_wait_for_what_is_queued(places, tmp_path, downloads):
    dataset, started = open_dataset(places[1], tmp_path), threading.Event()
    release = threading.Event()
    remote = dataset._remote
    remote._pool = ThreadPoolExecutor(1)
    remote._pool.submit(lambda: (started.set(), release.wait()))
    started.wait()
    dataset.prepare([0, 1, 2, 3])
    remote.stop()
    release.set()
    assert remote._pool is None and not downloads


def test_shards_that_are_prepared_are_there_when_they_are_read(places, tmp_path, downloads):
    dataset = open_dataset(places[1], tmp_path)
    dataset.prepare([0, 2, 2])
    dataset._remote._pool.shutdown(wait=True)
    assert sorted(downloads) == ["shards/000000.tar", "shards/000002.tar"]
    dataset.read(0), dataset.read(14)
    assert len(downloads) == 2


def test_neighbours_are_fetched_by_one_request(places, tmp_path, monkeypatch):
    asked, real = [], Folder.read_spans
    monkeypatch.setattr(Folder, "read_spans", lambda *a: asked.append(a[1]) or real(*a))
    dataset = open_dataset(places[1], tmp_path, "ranges")
    spans = [dataset.place(n) for n in (3, 35, 1, 2, 20)]
    found = [dataset.parse(span) for span in dataset.read_spans(spans)]
    assert [raw.key[-2:] for raw in found] == ["03", "35", "01", "02", "20"]
    assert [len(request) for request in asked] == [3], "one for each shard, all at once"


@pytest.mark.parametrize("read", ["shards", "ranges"])
def test_a_store_that_fails_for_a_while_is_asked_again(places, tmp_path, monkeypatch, read):
    failures, real = iter([OSError("slow down")] * 3), store_files._once

    def fails_first(call):
        for failure in failures:
            raise failure
        return real(call)

    monkeypatch.setattr(store_files, "_once", fails_first)
    assert open_dataset(places[1], tmp_path, read).read(0).images


def test_a_store_that_goes_on_failing_is_an_error_and_no_broken_sample(
    places, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError("the store is away")

    monkeypatch.setattr(Folder, "download", fail)
    with pytest.raises(OSError, match="the store is away"):
        open_dataset(places[1], tmp_path).read(0)
    assert not list(tmp_path.glob("*.tar"))


def test_a_tar_that_has_changed_is_refused_though_its_size_is_the_same(tmp_path):
    write_dataset(tmp_path / "pairs", [3], pair)
    with s3_bucket() as bucket:
        url = bucket.upload(tmp_path / "pairs")
        tar = tmp_path / "pairs/shards/000000.tar"
        tar.write_bytes(tar.read_bytes().replace(b"JFIF", b"JFIX", 1))
        bucket.upload(tmp_path / "pairs")
        with pytest.raises(OSError, match="is not the tar that the manifest names"):
            open_dataset(url, tmp_path / "c").read(0)
    assert not list((tmp_path / "c").glob("*.tar"))


@pytest.mark.parametrize(("read", "workers"), [("shards", 0), ("shards", 1), ("ranges", 1)])
def test_the_stream_is_that_of_the_disk(places, tmp_path, text_format, image_format, read, workers):
    def batches(url: str) -> list:
        config = DataConfig(
            sources={"a": {"path": url}},
            lanes=4,
            shuffle_block=5,
            workers=workers,
            remote={"cache": str(tmp_path), "read": read, "ahead_steps": 2},
        )
        stream = TrainStream(config, 3, text_format, image_format)
        steps = stream.steps(BatchPlan(8, 4, 2), 1, 40, 4)
        return [batch.input_ids.tolist() for step in steps for batch in step]

    assert batches(places[1]) == batches(places[0])


def test_a_cache_too_small_for_a_node_is_refused(places, tmp_path, text_format, monkeypatch):
    def check(**remote) -> None:
        settings = {"cache": str(tmp_path), "ahead_steps": 1} | remote
        config = DataConfig(sources={"a": {"path": places[1]}}, lanes=4, remote=settings)
        TrainStream(config, 3, text_format, None).check_cache(BatchPlan(8, 4, 2), 1)

    check()
    check(cache_bytes=1, read="ranges")
    sizes = sum(s.bytes for s in Dataset(places[0], "k").manifest.shards)
    check(cache_bytes=sizes)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match="8 ranks of a node read at the same time") as caught:
        check(cache_bytes=sizes)
    assert caught.value.problems[0].key == "data.remote.cache_bytes"
    assert "set data.remote.read=ranges" in caught.value.problems[0].remedy
