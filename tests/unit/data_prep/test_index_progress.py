import re
from collections import Counter

from data_prep import index_progress
from data_prep.index_progress import IndexProgress


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(index_progress.time, "monotonic", lambda: now[0])
    with IndexProgress() as advance:
        for done in range(1, 26):
            now[0] += 1.0
            advance(done, 25, Counter(ok=9 * done, undecodable=done))
    assert capsys.readouterr().err.splitlines() == [
        "index: tar 10/25, 100 samples, 90.0% ok",
        "index: tar 20/25, 200 samples, 90.0% ok",
        "index: tar 25/25, 250 samples, 90.0% ok",
    ]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with IndexProgress() as advance:
        advance(2, 3, Counter())
        advance(3, 3, Counter(ok=5))
    err = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)  # without colours
    assert "3/3 tars  5 samples, 100.0% ok" in err and "index: tar" not in err
