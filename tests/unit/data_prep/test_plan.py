import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import planned_file
from data_prep.config import IngestConfig, policy
from data_prep.errors import ConfigError
from data_prep.plan import PLAN_NAME, load_plan, make_plan
from data_prep.schema import canonical_hash
from data_prep.storage import Folder
from data_prep.tables.shard import read_shard
from tests.helpers.s3 import s3_bucket
from tests.helpers.url_tables import plan_table, read_plan

TABLE = "ingest.sources.web.table"


def write(path, first, rows, kind="tsv"):
    """Rows numbered on from `first`."""
    numbers = range(first, first + rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "tsv":
        path.write_text("".join(f"http://a/{i}\tcaption {i}\n" for i in numbers))
    else:
        data = {
            "url": [f"http://a/{i}" for i in numbers],
            "text": [f"caption {i}" for i in numbers],
        }
        pq.write_table(pa.table(data, pa.schema([("url", "string"), ("text", "string")])), path)
    return path


def refused(table, folder, **settings):
    with pytest.raises(ConfigError) as caught:
        plan_table(table, folder, **settings)
    return caught.value.problems


def test_files_are_planned_in_order_of_name_and_shards_never_straddle_them(tmp_path):
    for name, first, rows in (("b", 5, 4), ("a", 0, 5)):
        write(tmp_path / "t" / f"{name}.tsv", first, rows)
    plan = plan_table(tmp_path / "t", tmp_path / "plan", shard_rows=3)
    assert (plan.source, plan.rows, plan.num_shards) == ("web", 9, 4)
    assert [(s.name, s.file, s.first_row, s.rows) for s in plan.shards()] == [
        *(("000000", "a.tsv", 0, 3), ("000001", "a.tsv", 3, 2)),
        *(("000002", "b.tsv", 5, 3), ("000003", "b.tsv", 8, 1)),
    ]
    assert read_plan(plan)["url"].to_pylist() == [f"http://a/{i}" for i in range(9)]
    assert plan.added == ["a.tsv", "b.tsv"]


def test_the_same_files_give_the_same_plan(tmp_path):
    write(tmp_path / "t.tsv", 0, 10)
    plan = plan_table(tmp_path / "t.tsv", tmp_path / "plan", 3)
    before = (tmp_path / "plan" / PLAN_NAME).stat().st_mtime_ns
    again = plan_table(tmp_path / "t.tsv", tmp_path / "plan", 3)
    assert again.files == plan.files and again.added == []
    assert (tmp_path / "plan" / PLAN_NAME).stat().st_mtime_ns == before
    assert load_plan(Folder(str(tmp_path / "plan"), "k"), "k").files == plan.files


def test_making_a_plan_writes_nothing(tmp_path):
    config = IngestConfig(
        output="o", sources={"web": {"table": str(write(tmp_path / "t.tsv", 0, 1))}}
    )
    plan = make_plan(config, "web", Folder(str(tmp_path / "plan"), "k"))
    assert not (tmp_path / "plan").exists()
    assert plan.policy_hash == canonical_hash(policy(config, "web"))


@settings(max_examples=15)
@given(
    st.permutations(["a", "b", "c", "d"]),
    st.lists(st.integers(0, 7), min_size=4, max_size=4),
    st.integers(1, 4),
    st.sampled_from(["tsv", "parquet"]),
    st.booleans(),
)
def test_files_that_come_later_move_no_row(tmp_path_factory, names, sizes, rows, kind, together):
    folder = tmp_path_factory.mktemp("grow")
    shards, table, added = [], None, [names[:1], names[1:]] if together else [[n] for n in names]
    sizes[0] += 1
    for batch in added:
        for name in batch:
            at = names.index(name)
            header = 0 if kind == "parquet" else 1  # an empty TSV would be refused
            write(folder / "t" / f"{name}.{kind}", 100 * at, max(sizes[at], header), kind)
        plan = plan_table(folder / "t", folder / "plan", rows)
        now = [(s.name, s.first_row, s.rows, s.file, s.file_row) for s in plan.shards()]
        assert now[: len(shards)] == shards
        assert plan.added == [f"{name}.{kind}" for name in sorted(batch)]
        read = read_plan(plan)
        assert table is None or read.slice(0, table.num_rows).equals(table)
        shards, table = now, read
    assert plan.rows == table.num_rows
    assert len(set(table["url"].to_pylist())) == table.num_rows
    assert table["row"].to_pylist() == list(range(plan.rows))


@pytest.mark.parametrize("kind", ["tsv", "parquet"])
@settings(max_examples=20)
@given(data=st.data(), flip=st.integers(1, 255))
def test_any_byte_that_changes_in_a_planned_file_is_refused(tmp_path_factory, kind, data, flip):
    folder = tmp_path_factory.mktemp("byte")
    path = write(folder / f"t.{kind}", 0, 6, kind)
    plan_table(path, folder / "plan", 2)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= flip
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (problem,) = refused(path, folder / "plan", shard_rows=2)
    assert problem.key == TABLE and path.name in problem.rule


def test_a_changed_file_is_refused_with_the_difference_shown(tmp_path):
    path = write(tmp_path / "t" / "a.tsv", 0, 10)
    write(tmp_path / "t" / "b.tsv", 10, 3)
    plan = plan_table(tmp_path / "t", tmp_path / "plan", 3)
    then, size = plan.files[0].sha256[:16], path.stat().st_size
    path.write_text(path.read_text().replace("/7\t", "/77\t"))
    now = plan_table(tmp_path / "t", tmp_path / "other", 3).files[0].sha256[:16]
    (problem,) = refused(tmp_path / "t", tmp_path / "plan", shard_rows=3)
    assert problem.key == TABLE and problem.value == str(tmp_path / "t")
    assert problem.rule == (
        f"a.tsv is planned already and must not change: 10 rows and {size} bytes, sha256 {then}... "
        f"then; 10 rows and {size + 1} bytes, sha256 {now}... now; the first that differ are among "
        "rows 6 to 8 of the file"
    )
    assert problem.remedy.startswith("restore it and put new rows into a file of their own")


def test_rows_written_behind_a_planned_file_are_named(tmp_path):
    path = write(tmp_path / "t.tsv", 0, 6)
    plan_table(path, tmp_path / "plan", 3)
    write(path, 0, 8)
    (problem,) = refused(path, tmp_path / "plan", shard_rows=3)
    assert "6 rows and" in problem.rule and "8 rows and" in problem.rule
    assert "among rows 6 to 8 of the file" in problem.rule


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    for i, name in enumerate("abcd"):
        write(tmp_path / "t" / f"{name}.tsv", i, 5)
    plan_table(tmp_path / "t", tmp_path / "plan", 3)
    write(tmp_path / "t" / "a.tsv", 0, 4)
    (tmp_path / "t" / "b.tsv").unlink()
    write(tmp_path / "t" / "c.tsv", 0, 6)
    (tmp_path / "t" / "e.tsv").write_text("x\ty\n")
    problems = refused(tmp_path / "t", tmp_path / "plan", shard_rows=4)
    rules = [problem.rule for problem in problems]
    assert rules[0] == f"must be 3, as when {tmp_path / 'plan'} was begun; nothing was touched"
    assert problems[0].key == "ingest.shard_rows" and problems[0].value == 4
    assert rules[1] == "b.tsv is planned already and must stay; it is not there"
    assert "no address and no url column" in rules[2]
    assert rules[3].startswith("a.tsv is planned already and must not change")
    assert rules[4].startswith("c.tsv is planned already and must not change")
    assert len(problems) == 5


def test_what_is_wrong_with_many_new_files_is_told_by_name(tmp_path):
    for name in "abcde":
        (tmp_path / f"{name}.csv").write_text("url,say\nu,c\n")
    (tmp_path / "f.csv").write_text("link,text\nu,c\n")
    said, linked = refused(tmp_path, tmp_path / "plan")
    assert said.rule.endswith("it has: url, say (a.csv and 4 more files)")
    assert linked.rule.endswith("it has: link, text (f.csv)")


def test_another_policy_is_refused_setting_by_setting(tmp_path):
    path = write(tmp_path / "t.tsv", 0, 3)
    plan_table(path, tmp_path / "plan")
    for settings_, key in (
        ({"layout": "cc12m"}, "ingest.sources.web.layout"),
        ({"keep_columns": []}, "ingest.sources.web.keep_columns"),
    ):
        (problem,) = refused(path, tmp_path / "plan", **settings_)
        assert problem.key == key and problem.value == [*settings_.values()][0]
        assert problem.remedy == "set it back, or set another ingest.output"


def test_another_kind_of_table_is_refused(tmp_path):
    plan_table(write(tmp_path / "t.tsv", 0, 3), tmp_path / "plan")
    (problem,) = refused(write(tmp_path / "t.parquet", 0, 3, "parquet"), tmp_path / "plan")
    assert problem.rule == "the planned files are .tsv, these are .parquet"
    assert problem.remedy == "name the former table, or set another ingest.output"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_without_rows_is_refused(tmp_path, kind):
    path = write(tmp_path / "t.parquet", 0, 0, "parquet")
    if kind == "csv":
        path = tmp_path / "t.csv"
        path.write_text("url,text\n")
    (problem,) = refused(path, tmp_path / "plan")
    assert (problem.key, problem.rule) == (TABLE, "the table must hold at least one row")


def test_a_table_may_be_moved(tmp_path):
    path = write(tmp_path / "t.tsv", 0, 5)
    plan = plan_table(path, tmp_path / "plan", 2)
    (tmp_path / "new").mkdir()
    moved = plan_table(path.rename(tmp_path / "new" / "t.tsv"), tmp_path / "plan", 2)
    assert moved.input_fingerprint == plan.input_fingerprint and moved.added == []
    assert read_plan(moved).num_rows == 5


def test_the_fingerprint_follows_the_contents_alone(tmp_path):
    prints = []
    for name, rows in (("a.tsv", 2), ("b.tsv", 2), ("c.tsv", 3)):
        plan = plan_table(write(tmp_path / name, 0, rows), tmp_path / f"{name}.plan")
        prints.append(plan.input_fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_a_file_that_stays_as_it_is_is_not_read_again(tmp_path, monkeypatch):
    path = write(tmp_path / "t.tsv", 0, 5)
    plan_table(path, tmp_path / "plan")  # just written: its times are not relied on
    now = time.time()
    monkeypatch.setattr(planned_file.time, "time", lambda: now + 10)
    plan = plan_table(path, tmp_path / "plan")
    assert plan.files[0].stamp
    with monkeypatch.context() as patch:
        patch.delattr(planned_file, "scan_file")
        assert plan_table(path, tmp_path / "plan").files == plan.files
    os.utime(path)  # touched: read again, and found the same
    assert plan_table(path, tmp_path / "plan").input_fingerprint == plan.input_fingerprint


def test_in_a_store_files_are_known_by_their_tags(tmp_path, monkeypatch):
    write(tmp_path / "t" / "a.tsv", 0, 5)
    with s3_bucket() as bucket:
        url = bucket.upload(tmp_path / "t")
        out = f"{bucket.url}/out"
        plan = plan_table(url, out, 2)
        with monkeypatch.context() as patch:
            patch.delattr(planned_file, "scan_file")
            assert plan_table(url, out, 2).files == plan.files
        assert read_plan(plan).num_rows == 5
        write(tmp_path / "t" / "b.tsv", 5, 5)
        bucket.upload(tmp_path / "t")
        assert plan_table(url, out, 2).added == ["b.tsv"]
        write(tmp_path / "t" / "a.tsv", 1, 5)
        bucket.upload(tmp_path / "t")
        (problem,) = refused(url, out, shard_rows=2)
        assert "a.tsv is planned already and must not change" in problem.rule


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "t.tsv", 0, 5)
    scan = planned_file.scan_file

    def scan_and_grow(*arguments):
        found = scan(*arguments)
        path.write_bytes(path.read_bytes() + b"x")
        return found

    monkeypatch.setattr(planned_file, "scan_file", scan_and_grow)
    (problem,) = refused(path, tmp_path / "plan")
    assert problem.rule == "t.tsv must not change while it is planned"


def test_a_file_that_cannot_be_read_to_its_end_is_refused(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is broken")

    path = write(tmp_path / "t.tsv", 0, 5)
    monkeypatch.setattr(planned_file, "scan_file", fail)
    (problem,) = refused(path, tmp_path / "plan")
    assert problem.rule == "t.tsv must be readable: the disk is broken"


@pytest.mark.parametrize("content", ["{", "{}", json.dumps({"version": 9})])
def test_a_plan_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / PLAN_NAME).write_text(content)
    (problem,) = refused(write(tmp_path / "t.tsv", 0, 1), tmp_path / "plan")
    assert problem.key == "ingest.output"
    assert "plan.json in the folder must follow version 1 of the plan" in problem.rule
    assert problem.remedy == "set another ingest.output, or delete the folder"


def test_the_plan_of_ten_thousand_shards_is_small(tmp_path):
    plan = plan_table(write(tmp_path / "t.tsv", 0, 20_000), tmp_path / "plan", 2)
    assert plan.num_shards == 10_000
    assert (tmp_path / "plan" / PLAN_NAME).stat().st_size < 300_000
    *_, last = plan.shards()
    assert read_shard(last)["url"].to_pylist() == ["http://a/19998", "http://a/19999"]
