import os
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.ingest import commit as committing
from data_prep.ingest.commit import (
    SIZE_EDGES,
    commit,
    fence,
    find_committed,
    part_place,
    read_piece,
    shard_place,
    staging,
)
from data_prep.ingest.piece import PieceWriter
from data_prep.storage import Folder
from tests.helpers.pieces import make_outcomes, make_rows
from tests.helpers.s3 import s3_bucket

PLACE = shard_place("000003")


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    """A new dataset folder, on disk and behind a URL."""
    if request.param == "disk":
        (tmp_path / "data").mkdir()
        yield Folder(str(tmp_path / "data"), "ingest.output")
    else:
        with s3_bucket() as bucket:
            yield Folder(f"{bucket.url}/data", "ingest.output")


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "data").mkdir()
    return Folder(str(tmp_path / "data"), "ingest.output")


def put(folder, outcomes, place=PLACE, **note):
    with staging(folder, "000003-whole") as prepared:
        writer = PieceWriter(make_rows(0, len(outcomes)), prepared / "samples")
        for i, outcome in enumerate(outcomes):
            writer.put(i, outcome)
        note = {"name": "000003", "plan": "p"} | note
        return commit(folder, place, [writer.finish()], prepared, **note)


def test_what_is_committed_is_found_again_with_all_it_said(folder):
    outcomes = make_outcomes(random.Random(), 30)
    assert find_committed(folder, PLACE) is None
    done = put(folder, outcomes, passes=2)
    found = find_committed(folder, PLACE)
    assert found.resumed and not done.resumed
    assert {**vars(found), "resumed": False} == vars(done)
    assert (found.plan, found.failed, found.passes) == ("p", False, 2)
    assert found.transient == sum(o.transient for o in outcomes)
    assert sum(found.statuses.values()) == found.entry.rows == 30
    longer = [max(o.original_width, o.original_height) for o in outcomes if o.original_width]
    assert sum(found.sizes) == len(longer)
    assert found.sizes[-1] == sum(side > SIZE_EDGES[-1] for side in longer)
    assert folder.size(PLACE.tar) == found.entry.bytes
    names = folder.names("")
    assert sorted(names) == sorted(PLACE), "nothing else is left behind"


def test_a_piece_that_is_read_commits_to_the_same_bytes(folder):
    first = put(folder, make_outcomes(random.Random(), 30))
    other = part_place("000003", 0, 30)
    with staging(folder, "again") as prepared:
        piece = read_piece(folder, PLACE, prepared)
        again = commit(folder, other, [piece], prepared, name="000003", plan="p")
    assert again.entry.sha256 == first.entry.sha256
    assert folder.read(other.tar) == folder.read(PLACE.tar)
    assert folder.read(other.index) == folder.read(PLACE.index)


@pytest.mark.parametrize("lost", PLACE)
def test_one_file_missing_and_it_counts_as_not_made(folder, lost):
    put(folder, make_outcomes(random.Random(), 10))
    folder.remove(lost)
    assert find_committed(folder, PLACE) is None


@pytest.mark.parametrize("broken", [PLACE.tar, PLACE.ledger])
def test_a_broken_file_counts_as_not_made(folder, broken):
    put(folder, make_outcomes(random.Random(), 10))
    folder.write(broken, b"half")
    assert find_committed(folder, PLACE) is None


def test_a_store_that_does_not_answer_is_no_missing_piece(folder, monkeypatch):
    put(folder, make_outcomes(random.Random(), 10))

    def away(*_):
        raise OSError("the store is away")

    monkeypatch.setattr(folder, "open_random", away)
    with pytest.raises(OSError, match="the store is away"):
        find_committed(folder, PLACE)


def test_a_footer_longer_than_the_first_read_is_read_whole(folder, monkeypatch):
    monkeypatch.setattr(committing, "_TAIL_BYTES", 16)
    done = put(folder, make_outcomes(random.Random(), 10))
    assert find_committed(folder, PLACE).entry == done.entry


def test_a_ledger_that_others_wrote_is_no_commit(disk):
    put(disk, make_outcomes(random.Random(), 10))
    path = disk.path / PLACE.ledger
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    assert find_committed(disk, PLACE) is None


@pytest.mark.parametrize("step", range(3))
def test_stopped_between_two_moves_it_counts_as_not_made(disk, monkeypatch, step):
    """Also where an earlier state of the shard was in place."""
    draw, calls, replace = random.Random(), [], os.replace
    put(disk, make_outcomes(draw, 10))

    def failing(source, target):
        if len(calls) == step:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(committing.os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        put(disk, make_outcomes(draw, 10))
    monkeypatch.undo()
    assert find_committed(disk, PLACE) is None
    done = put(disk, make_outcomes(draw, 10))
    assert find_committed(disk, PLACE).entry == done.entry
    assert not [*(disk.path / committing.STAGING).iterdir()]


def test_a_task_that_was_fenced_off_cannot_commit(disk):
    outcomes = make_outcomes(random.Random(), 10)
    kept = put(disk, outcomes)
    with staging(disk, "000003-whole") as stale, staging(disk, "000004-whole") as other:
        writer = PieceWriter(make_rows(0, 1), stale / "samples")
        writer.put(0, outcomes[0])
        piece = writer.finish()
        fence(disk, "000003-whole")
        with pytest.raises(OSError):
            commit(disk, PLACE, [piece], stale, name="000003", plan="p")
        assert other.is_dir() and not stale.exists()
        fence(disk)
        assert not other.exists()
    assert find_committed(disk, PLACE).entry == kept.entry


def test_the_index_is_a_plain_array(disk):
    done = put(disk, make_outcomes(random.Random(), 10))
    index = np.load(disk.path / PLACE.index, mmap_mode="r")
    assert len(index) == done.entry.samples
