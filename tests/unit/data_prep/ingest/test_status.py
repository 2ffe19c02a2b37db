import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.config import IngestConfig
from data_prep.errors import ConfigError
from data_prep.ingest.commit import shard_place
from data_prep.ingest.job import Job, Shard, run_job
from data_prep.ingest.status import format_status, read_status
from data_prep.plan import make_plan
from data_prep.storage import Folder

TABLE = "".join(f"http://127.0.0.1:9/{i}\tcaption {i}\n" for i in range(25)) + "\thas no url\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An ingest of 26 rows in three shards, all of which have failed: nobody listens there."""
    root = tmp_path_factory.mktemp("ingest")
    (root / "t.tsv").write_text(TABLE)
    config = IngestConfig(
        output=str(root / "data"),
        shard_rows=10,
        sources={"t": {"table": str(root / "t.tsv"), "layout": "cc12m"}},
        download={"robots": "ignore", "retries": 0},
    )
    folder = Folder(str(root / "data" / "t"), "x")
    plan = make_plan(config, "t", folder)
    plan.save(folder)
    for spec in plan.shards():
        run_job(Job(Shard(folder.url, "t", config, "p", spec), "whole"))
    return root / "data"


@pytest.fixture
def data(made, tmp_path):
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def test_rows_that_add_up(data):
    (status,) = read_status(str(data), verify=True)
    assert status.adds_up and not status.complete
    assert status.statuses == {"refused_private_address": 25, "missing_url": 1}
    text = format_status([status])
    assert "26 rows in 3 shards" in text and "96.2%" in text
    assert "every row has one status, 26 of 26; no manifest yet" in text
    assert read_status(str(data / "t")) == read_status(str(data))


def test_shards_that_are_not_made_yet_do_not_add_up(data):
    (data / "t" / shard_place("000001").ledger).unlink()
    (status,) = read_status(str(data))
    assert not status.adds_up and not status.faults
    assert (status.missing, status.missing_rows) == (1, 10)
    text = format_status([status])
    assert "(not ended yet)" in text
    assert "16 of 26 rows have a status, 1 shards are not made yet: run the ingest again" in text


def ledger_without(data, keep):
    path = data / "t" / shard_place("000002").ledger
    table = pq.read_table(path)
    pq.write_table(table.take(keep).replace_schema_metadata(table.schema.metadata), path)


def test_a_row_that_is_missing_and_one_that_is_there_twice_are_told(data):
    ledger_without(data, [0, 1, 2, 3, 4, 4])
    (status,) = read_status(str(data))
    assert not status.adds_up
    (fault,) = status.faults
    assert "of 6 rows planned 1 are missing, 1 are there twice, 0 belong elsewhere" in fault
    assert f"fault: {fault}" in format_status([status])


def test_a_status_that_nobody_knows_is_told(data):
    path = data / "t" / shard_place("000002").ledger
    table = pq.read_table(path)
    place = table.schema.get_field_index("status")
    changed = table.set_column(place, "status", pa.array(["fine"] * 6))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    (status,) = read_status(str(data))
    assert status.faults == ["ledger/000002.parquet: no such status: fine"]


def test_samples_that_are_not_the_rows_that_are_ok_are_told(data):
    path = data / "t" / shard_place("000002").ledger
    table = pq.read_table(path)
    place = table.schema.get_field_index("status")
    changed = table.set_column(place, "status", pa.array(["ok"] * 6))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    (status,) = read_status(str(data))
    assert status.faults == ["shards/000002.tar: 0 samples, 6 rows are ok"]


@pytest.mark.parametrize("broken", ["tar", "ledger"])
def test_a_file_that_is_not_whole_is_told(data, broken):
    path = data / "t" / getattr(shard_place("000002"), broken)
    path.write_bytes(path.read_bytes()[:-100])
    (status,) = read_status(str(data))
    wanted = "ledger/000002.parquet: the ledger, or the tar it speaks of, is not whole"
    assert status.faults == [wanted] and not status.adds_up


def test_changed_bytes_are_found_when_they_are_read(data):
    path = data / "t" / shard_place("000000").tar
    data_bytes = bytearray(path.read_bytes())
    data_bytes[-1] ^= 1
    path.write_bytes(data_bytes)
    assert read_status(str(data))[0].adds_up
    (status,) = read_status(str(data), verify=True)
    assert status.faults == ["shards/000000.tar: sha256 differs from the ledger's"]


def test_a_folder_without_an_ingest_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is the folder of an ingest, with plan.json in it"):
        read_status(str(tmp_path))
    with pytest.raises(ConfigError, match="give ingest.output, or a source's folder in it"):
        read_status(str(tmp_path / "nowhere"))


def test_a_plan_of_another_version_is_refused(data):
    path = data / "t" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(ConfigError, match="must follow version 1 of the plan; it has version 99"):
        read_status(str(data))
    path.write_text("{}")
    with pytest.raises(ConfigError, match="must follow version 1 of the plan; it does not"):
        read_status(str(data))
