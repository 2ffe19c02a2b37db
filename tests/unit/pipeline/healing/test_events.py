import json

import pytest

from pipeline.healing.events import EventLog


def test_events_are_on_disk_and_numbered_by_kind(tmp_path):
    log = EventLog(tmp_path)
    log.add("start", 0, 0)
    log.add("skip", 3, 24, loss=None, suspects=2)
    log.add("skip", 7, 56)
    log.add("backoff", 8, 64, loss_scale=32768.0)
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"], r["position"], r["number"]) for r in rows] == [
        ("start", 0, 0, 1),
        ("skip", 3, 24, 1),
        ("skip", 7, 56, 2),
        ("backoff", 8, 64, 1),
    ]
    assert rows[1]["details"] == {"loss": None, "suspects": 2}
    assert rows[0]["time"].endswith("+00:00")
    again = EventLog(tmp_path)
    assert again.events == log.events
    assert again.add("skip", 9, 72).number == 3
    assert again.add("start", 0, 0).number == 1 and again.add("skip", 1, 8).number == 1


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'oops' is no kind of event; there are start, restart"):
        EventLog(tmp_path).add("oops", 0, 0)
    assert not (tmp_path / "events.jsonl").exists()


def test_skips_are_counted_within_the_window_and_a_batch_once(tmp_path):
    log = EventLog(tmp_path)
    log.add("skip", 1, 8)
    log.add("start", 0, 0)
    for step in (10, 50, 50, 90):
        log.add("skip", step, 8 * step)
    assert log.skips_used(90, window=1000) == 3
    assert log.skips_used(90, window=50) == 2
    assert log.skips_used(90, window=1) == 1
    assert EventLog(tmp_path).skips_used(1089, window=1000) == 1
    assert log.skips_used(1090, window=1000) == 0


def test_data_goes_on_behind_what_made_the_spike_even_after_a_crash(tmp_path):
    log = EventLog(tmp_path)
    log.add("start", 0, 0)
    assert log.num_rollbacks == 0
    # Checkpoints 400, 500 and 600 know of no rollback.
    event = log.rollback(620, 500, 6200, loss=9.0, z=40.0)
    assert event.details == {"to_step": 500, "loss": 9.0, "z": 40.0}
    log = EventLog(tmp_path)
    assert log.position_after(500, 5000, known=0) == 6200
    assert log.position_after(400, 4000, known=0) == 4000
    assert log.is_abandoned(600, known=0)
    assert not log.is_abandoned(500, known=0) and not log.is_abandoned(400, known=0)
    # The next checkpoint 600 is on the new way, and so is a new checkpoint 500.
    assert log.num_rollbacks == 1
    assert not log.is_abandoned(600, known=1)
    assert log.position_after(500, 6200, known=1) == 6200
    # Twice to the same checkpoint: the later one goes on later.
    log.rollback(530, 500, 6500)
    assert log.position_after(500, 5000, known=0) == 6500
    assert log.rollbacks_used() == 2
    log.add("start", 0, 0)
    assert log.rollbacks_used() == 0 and log.num_rollbacks == 2


def test_a_hang_is_told_once_by_the_next_process(tmp_path):
    log = EventLog(tmp_path)
    assert log.untold() == []
    log.add("start", 0, 0)
    log.add("skip", 3, 24)
    hang = log.add("hang", 5, 40, ranks=[1])
    assert EventLog(tmp_path).untold() == [hang]
    log.add("restart", 4, 32)
    assert EventLog(tmp_path).untold() == []


def test_a_torn_event_is_forgotten_and_the_next_is_kept(tmp_path):
    log = EventLog(tmp_path)
    log.add("skip", 1, 8)
    log.add("skip", 2, 16)
    text = log.path.read_bytes()
    log.path.write_bytes(text[:-10])
    log = EventLog(tmp_path)
    assert len(log.events) == 1
    log.add("skip", 2, 16)
    assert [e.step for e in EventLog(tmp_path).events] == [1, 2]
