import hashlib
import io
import json
import os
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from data_prep.config import SourceConfig
from data_prep.ledger import LEDGER_SCHEMA
from data_prep.schema import INDEX_DTYPE, Status
from data_prep.shards import ShardTask, make_failed_shard, make_shard, shard_paths
from data_prep.sources import Table
from data_prep.tar_members import sample_parts


@pytest.fixture
def make_task(scene_web, ingest_config, tmp_path):
    source = SourceConfig(table=str(scene_web.folder / "laion.parquet"))
    rows = [*Table("laion", source).rows()][:70]
    rows[3], rows[4], rows[5] = (None, "a"), (rows[4][0], None), ("ftp://a/b", "c")

    def make(folder, first_row=0):
        return ShardTask(str(tmp_path / folder), "000000", first_row, rows, ingest_config, "plan")

    return make


def paths_of(task):
    return shard_paths(task.folder, task.name)


def test_every_row_is_in_the_ledger_and_the_index_finds_every_sample(make_task):
    task = make_task("a", first_row=500)
    result = make_shard(task)
    tar_path, index_path, ledger_path = paths_of(task)
    ledger = pq.read_table(ledger_path)
    assert ledger.schema.equals(LEDGER_SCHEMA)
    assert ledger["row"].to_pylist() == list(range(500, 570))
    urls, captions = (ledger[name].to_pylist() for name in ("url", "caption"))
    assert list(zip(urls, captions, strict=True)) == task.rows
    statuses = ledger["status"].to_pylist()
    assert statuses[3:6] == [Status.MISSING_URL, Status.MISSING_CAPTION, Status.REFUSED_SCHEME]
    assert ledger["error"].to_pylist()[3:5] == ["the row has no url", "the row has no caption"]
    assert sum(result.statuses.values()) == result.entry.rows == 70

    ok = [r for r in ledger.to_pylist() if r["status"] == "ok"]
    index = np.load(index_path)
    assert index.dtype == INDEX_DTYPE
    assert len(index) == len(ok) == result.entry.samples
    tar = tar_path.read_bytes()
    for record, row in zip(index, ok, strict=True):
        key, (image, text) = sample_parts(tar[record["offset"] :][: record["bytes"]])
        assert key == row["key"] and record["num_images"] == 1
        assert record["text_bytes"] == len(text.encode())
        assert hashlib.sha256(image).hexdigest() == row["sha256_stored"]
        assert f"{record['content_hash']:016x}" == row["sha256_stored"][:16]
        assert text == row["caption"]
        size = Image.open(io.BytesIO(image)).size
        assert size == (record["width"], record["height"]) == (row["width"], row["height"])
        assert record["row"] == row["row"]


def test_the_tar_is_plain_and_in_row_order(make_task):
    task = make_task("a")
    make_shard(task)
    with tarfile.open(paths_of(task)[0]) as tar:
        members = tar.getmembers()
    names = [m.name for m in members]
    assert names[:3] == ["000000000.jpg", "000000000.txt", "000000000.json"]
    assert [n.split(".")[0] for n in names] == sorted(n.split(".")[0] for n in names)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_webdataset_reads_it(make_task):
    task = make_task("a")
    make_shard(task)
    dataset = webdataset.WebDataset(str(paths_of(task)[0]), shardshuffle=False).decode("pil")
    samples = list(dataset)
    assert len(samples) == len(np.load(paths_of(task)[1]))
    assert samples[0]["jpg"].size == (64, 64)
    assert samples[0]["txt"] == samples[0]["json"]["caption"] == task.rows[0][1]


def test_two_runs_give_the_same_bytes(make_task):
    entries = [make_shard(make_task(folder)).entry for folder in "ab"]
    assert entries[0] == entries[1]
    data = [paths_of(make_task(folder))[0].read_bytes() for folder in "ab"]
    assert data[0] == data[1]
    assert hashlib.sha256(data[0]).hexdigest() == entries[0].sha256


def test_a_committed_shard_is_not_made_again(make_task):
    first = make_shard(make_task("a"))
    again = make_shard(make_task("a"))
    assert again.resumed and not first.resumed
    assert (again.entry, again.statuses) == (first.entry, first.statuses)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_shard_that_lost_a_file_is_made_again(make_task, lost):
    task = make_task("a")
    entry = make_shard(task).entry
    paths_of(task)[lost].unlink()
    again = make_shard(task)
    assert not again.resumed
    assert again.entry == entry


def test_a_broken_ledger_is_no_commit(make_task):
    task = make_task("a")
    make_shard(task)
    paths_of(task)[2].write_bytes(b"half")
    assert not make_shard(task).resumed


@pytest.mark.parametrize("step", range(3))
def test_killed_between_renames_it_is_not_committed(make_task, monkeypatch, step):
    task, calls, replace = make_task("a"), [], os.replace

    def failing(source, target):
        if len(calls) == step:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        make_shard(task)
    monkeypatch.undo()
    assert not make_shard(task).resumed
    left = [p.name for p in paths_of(task)[0].parent.parent.glob("*/*")]
    assert sorted(left) == ["000000.npy", "000000.parquet", "000000.tar"]


def test_a_failed_shard_accounts_for_its_rows_and_is_tried_again(make_task):
    task = make_task("a")
    result = make_failed_shard(task, "worker died")
    assert result.statuses == {"internal_error": 70}
    assert set(pq.read_table(paths_of(task)[2])["error"].to_pylist()) == {"worker died"}
    assert len(np.load(paths_of(task)[1])) == 0
    assert make_shard(task).entry.samples > 0


def test_the_sample_json_has_no_time_in_it(make_task):
    task = make_task("a")
    make_shard(task)
    with tarfile.open(paths_of(task)[0]) as tar:
        sample = json.load(tar.extractfile("000000000.json"))
    assert "seconds" not in sample and sample["url"] == task.rows[0][0]
