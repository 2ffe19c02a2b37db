import hashlib
import io
import json
import random
import tarfile

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from data_prep.ingest.piece import PieceWriter, _tar_header, write_merged
from data_prep.ledger import LEDGER_SCHEMA
from data_prep.outcome import Outcome
from data_prep.schema import INDEX_DTYPE, Status
from data_prep.tar_members import sample_parts
from tests.helpers.pieces import make_outcomes, make_rows

ROWS = 40


@pytest.fixture
def draw():
    return random.Random()


def make_piece(path, rows, outcomes, order=None):
    writer = PieceWriter(rows, path)
    for i in order or range(len(outcomes)):
        writer.put(i, outcomes[i])
    return writer.finish()


def merged(*pieces):
    tar = io.BytesIO()
    ledger, index, digest = write_merged(pieces, tar)
    assert hashlib.sha256(tar.getvalue()).hexdigest() == digest
    return tar.getvalue(), ledger, index


def test_the_order_in_which_rows_end_changes_nothing(tmp_path, draw):
    rows, outcomes = make_rows(500, ROWS), make_outcomes(draw, ROWS)
    order = list(range(ROWS))
    draw.shuffle(order)
    tar, ledger, index = merged(make_piece(tmp_path / "a", rows, outcomes))
    other, other_ledger, other_index = merged(make_piece(tmp_path / "b", rows, outcomes, order))
    assert tar == other and ledger.equals(other_ledger) and np.array_equal(index, other_index)


def test_the_bytes_are_those_of_tarfile(tmp_path, draw):
    rows, outcomes = make_rows(0, ROWS), make_outcomes(draw, ROWS)
    tar, _, _ = merged(make_piece(tmp_path / "a", rows, outcomes))
    wanted = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tar)) as found,
        tarfile.open(fileobj=wanted, mode="w", format=tarfile.USTAR_FORMAT) as again,
    ):
        for member in found.getmembers():
            info = tarfile.TarInfo(member.name)
            info.size = member.size
            again.addfile(info, found.extractfile(member))
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in found} == {(0, 0, 0, "", "")}
    assert tar == wanted.getvalue()


def test_ledger_and_index_find_every_row_and_sample(tmp_path, draw):
    rows, outcomes = make_rows(500, ROWS), make_outcomes(draw, ROWS)
    tar, ledger, index = merged(make_piece(tmp_path / "a", rows, outcomes))
    assert ledger.schema.equals(LEDGER_SCHEMA) and index.dtype == INDEX_DTYPE
    assert ledger["row"].to_pylist() == list(range(500, 500 + ROWS))
    assert ledger["status"].to_pylist() == [str(o.status) for o in outcomes]
    assert ledger["transient"].to_pylist() == [o.transient for o in outcomes]
    ok = [
        (row, o)
        for row, o in zip(ledger.to_pylist(), outcomes, strict=True)
        if o.status is Status.OK
    ]
    assert len(index) == len(ok)
    for record, (row, outcome) in zip(index, ok, strict=True):
        span = tar[record["offset"] :][: record["bytes"]]
        key, (image, text) = sample_parts(span)
        assert (key, image, text) == (row["key"], outcome.data, row["caption"])
        assert f"{row['row']:010d}" == key and record["row"] == row["row"]
        assert (record["width"], record["height"]) == (outcome.width, outcome.height)
        assert f"{record['content_hash']:016x}" == row["sha256_stored"][:16]
        assert row["sha256_stored"] == hashlib.sha256(image).hexdigest()
        assert (record["text_bytes"], record["num_images"]) == (len(text), 1)


def test_webdataset_reads_it_and_the_json_has_no_time_in_it(tmp_path, draw):
    rows, outcomes = make_rows(0, ROWS), make_outcomes(draw, ROWS)
    tar, ledger, _ = merged(make_piece(tmp_path / "a", rows, outcomes))
    (tmp_path / "a.tar").write_bytes(tar)
    found = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    ok = [row for row in ledger.to_pylist() if row["status"] == "ok"]
    assert [s["__key__"] for s in found] == [row["key"] for row in ok]
    for sample, row in zip(found, ok, strict=True):
        told = json.loads(sample["json"])
        assert "seconds" not in told and told["caption"] == sample["txt"].decode()
        assert told == {name: row[name] for name in told}


def test_parts_merge_to_the_bytes_of_the_whole(tmp_path, draw):
    rows, outcomes = make_rows(100, ROWS), make_outcomes(draw, ROWS)
    whole = merged(make_piece(tmp_path / "whole", rows, outcomes))
    cuts = sorted({0, ROWS, *draw.sample(range(1, ROWS), 3)})
    parts = [
        make_piece(tmp_path / f"{a}", rows.slice(a, b - a), outcomes[a:b])
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    draw.shuffle(parts)
    tar, ledger, index = merged(*parts)
    assert tar == whole[0] and ledger.equals(whole[1]) and np.array_equal(index, whole[2])


def test_of_a_row_in_two_pieces_the_later_one_counts(tmp_path, draw):
    rows = make_rows(0, ROWS)
    first, second = make_outcomes(draw, ROWS), make_outcomes(draw, ROWS)
    again = sorted(draw.sample(range(ROWS), ROWS // 3))
    best = [second[i] if i in again else first[i] for i in range(ROWS)]
    former = make_piece(tmp_path / "a", rows, first)
    later = make_piece(tmp_path / "b", rows.take(again), [second[i] for i in again])
    tar, ledger, index = merged(former, later)
    wanted = merged(make_piece(tmp_path / "c", rows, best))
    assert tar == wanted[0] and ledger.equals(wanted[1]) and np.array_equal(index, wanted[2])


def test_kept_columns_of_the_table_stand_in_the_ledger(tmp_path, draw):
    scores = pa.array([draw.random() for _ in range(ROWS)])
    rows = make_rows(0, ROWS, similarity=scores)
    ledger = make_piece(tmp_path / "a", rows, make_outcomes(draw, ROWS)).ledger
    assert ledger.column_names == [*LEDGER_SCHEMA.names, "similarity"]
    assert ledger["similarity"].to_pylist() == scores.to_pylist()


def test_no_row_is_lost_or_ends_twice(tmp_path):
    writer = PieceWriter(make_rows(7, 3), tmp_path / "a")
    writer.put(1, Outcome(Status.DNS, "no such host"))
    with pytest.raises(RuntimeError, match="row 8 has ended twice"):
        writer.put(1, Outcome(Status.DNS, "no such host"))
    with pytest.raises(RuntimeError, match="2 rows have no outcome, the first is 7"):
        writer.finish()


def test_samples_that_are_cut_off_are_noticed(tmp_path, draw):
    rows = make_rows(0, ROWS)
    piece = make_piece(tmp_path / "a", rows, make_outcomes(draw, ROWS))
    data = piece.samples.read_bytes()
    piece.samples.write_bytes(data[:-600])
    with pytest.raises(OSError, match="shorter than its index says"):
        merged(piece)


@given(
    name=st.text("abcdefghijklmnopqrstuvwxyz0123456789.", min_size=1, max_size=100),
    size=st.integers(0, 8**11 - 1),
)
def test_headers_are_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert _tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_what_does_not_fit_a_header_is_refused():
    for name, size in (("a" * 101, 0), ("a", 8**11)):
        with pytest.raises(ValueError, match="does not fit a ustar header"):
            _tar_header(name, size)
