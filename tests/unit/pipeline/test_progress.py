from types import SimpleNamespace

import pytest

from pipeline import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    # Its own: other threads go by that of the process.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_log_file_gets_a_line_now_and_then_and_at_the_end(capsys, clock):
    with progress.RunProgress("run", total=10, done=4, silent=False) as shown:
        shown.step(5)
        clock[0] += 12
        shown.step(6, "loss 1.500")
        shown.step(7, "loss 1.250")
        shown.step(10, "loss 1.125")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "run: step 6/10, loss 1.500, 24 s left",
        "run: step 10/10, loss 1.125, 0 s left",
    ]


def test_other_ranks_show_nothing(capsys, clock):
    with progress.RunProgress("run", total=2, done=0, silent=True) as shown:
        clock[0] += 60
        shown.step(2)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_what_is_counted_has_a_name(capsys, clock):
    with progress.RunProgress("features", total=4, done=0, silent=False, unit="image") as shown:
        shown.step(4)
    assert capsys.readouterr().err == "features: image 4/4, 0 s left\n"
