"""Jobs by themselves, without Ray: what workers do, in this process."""

import threading

import pyarrow.parquet as pq
import pytest

from data_prep.config import IngestConfig
from data_prep.ingest.commit import PARTS, find_committed, part_place, shard_place
from data_prep.ingest.job import Job, Part, Shard, find, give_up, run_job
from data_prep.plan import make_plan
from data_prep.storage import Folder


@pytest.fixture
def make_shard(scene_web, ingest_config, tmp_path):
    """The only shard of the held-out table, 20 rows of which all are ok, in a folder of that name."""

    def make(name, **changes):
        config = IngestConfig.model_validate(ingest_config.model_dump() | changes)
        folder = Folder(str(tmp_path / name), "ingest.output")
        folder.path.mkdir(exist_ok=True)
        (spec,) = make_plan(config, "held_out", folder).shards()
        return folder, Shard(folder.url, "held_out", config, "plan", spec)

    return make


def tar_of(folder):
    return folder.read(shard_place("000000").tar)


def test_parts_and_whole_give_the_same_shard(make_shard):
    folder, shard = make_shard("whole")
    whole = run_job(Job(shard, "whole"))
    assert whole.statuses == {"ok": 20} and not whole.resumed
    assert run_job(Job(shard, "whole")).resumed, "what is made is found"

    other, shard = make_shard("parts")
    parts = (Part(0, 7), Part(7, 20))
    for part in reversed(parts):
        assert run_job(Job(shard, "part", (part,))).entry.rows == part.stop - part.start
    assert find(other, shard) is None
    assert run_job(Job(shard, "join", parts)).entry == whole.entry
    assert tar_of(folder) == tar_of(other)
    assert not [*(other.path / PARTS).iterdir()]


def test_a_part_of_a_shard_that_is_there_is_not_made(make_shard):
    folder, shard = make_shard("a")
    run_job(Job(shard, "whole"))
    assert run_job(Job(shard, "part", (Part(0, 7),))).entry.rows == 20
    assert find_committed(folder, part_place("000000", 0, 7)) is None


def test_parts_that_failed_for_good_are_accounted_for_and_the_shard_is_made_again(make_shard):
    folder, shard = make_shard("a")
    run_job(Job(shard, "part", (Part(0, 7),)))
    done = run_job(Job(shard, "join", (Part(0, 7), Part(7, 20, "worker died"))))
    assert done.statuses == {"internal_error": 13, "ok": 7} and done.failed
    assert find(folder, shard) is None
    assert run_job(Job(shard, "whole")).statuses == {"ok": 20}


def test_a_shard_given_up_accounts_for_its_rows(make_shard):
    folder, shard = make_shard("a")
    done = give_up(shard, "worker died")
    assert done.statuses == {"internal_error": 20} and done.failed
    ledger = pq.read_table(folder.path / shard_place("000000").ledger)
    assert set(ledger["error"].to_pylist()) == {"worker died"}
    assert ledger["row"].to_pylist() == list(range(20))


def test_another_plan_is_never_taken_as_done(make_shard):
    folder, shard = make_shard("a")
    run_job(Job(shard, "whole"))
    assert find(folder, shard)
    other = Shard(shard.folder, shard.source, shard.config, "other", shard.spec)
    assert find(folder, other) is None


def test_a_retry_of_a_shard_that_is_gone_makes_it_whole(make_shard):
    """Killed while it put the shard in place anew, a retry leaves none."""
    folder, shard = make_shard("a")
    before = run_job(Job(shard, "whole"))
    folder.remove(shard_place("000000").ledger)
    again = run_job(Job(shard, "retry"))
    assert again.entry == before.entry and again.passes == 1


def test_it_tells_how_far_it_is(make_shard, monkeypatch):
    monkeypatch.setattr("data_prep.ingest.job.SECONDS_BETWEEN_TELLINGS", 0.0)
    _, shard = make_shard("a")
    told, thread = [], threading.get_ident()

    def tell(name, statuses):
        assert threading.get_ident() == thread
        told.append((name, statuses))

    run_job(Job(shard, "whole"), tell)
    assert {name for name, _ in told} == {"held_out/000000-whole"}
    assert [statuses["ok"] for _, statuses in told] == list(range(1, 21))
