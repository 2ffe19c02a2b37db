from collections import Counter

from data_prep.ingest.progress import Figures, Meter, ProgressLine


def figures(**changes):
    statuses = Counter(ok=70, timeout=20, http_404=7, dns=2, undecodable=1)
    given = {"rows": 1000, "statuses": statuses, "made": 70, "images_per_second": 35.0}
    return Figures(**given | {"rows_per_second": 50.0, "seconds": 2.0} | changes)


def test_the_line_says_speed_share_top_errors_and_what_is_left():
    line = figures().line()
    assert line == "35 images/s, 70.0% ok, timeout 20.0%, http_404 7.0%, dns 2.0%, 0:18 left"


def test_hours_are_written_as_such():
    assert figures(rows=1_000_000).line().endswith(", 5:33:18 left")


def test_nothing_is_said_of_what_is_left_before_anything_has_ended():
    line = figures(statuses=Counter(), made=0, images_per_second=0.0, rows_per_second=0.0).line()
    assert line == "0 images/s, 0.0% ok"


def test_all_ended_is_nothing_left():
    assert figures(rows=100, rows_per_second=0.0).seconds_left == 0.0


def test_what_was_found_is_no_speed(monkeypatch):
    clock = iter([100.0, 110.0, 180.0])
    monkeypatch.setattr("data_prep.ingest.progress.time.monotonic", lambda: next(clock))
    meter = Meter(1000, Counter(ok=500, dns=100))
    first = meter.figures(Counter(ok=520, dns=120))
    assert (first.made, first.images_per_second, first.rows_per_second) == (20, 2.0, 4.0)
    assert (first.ended, first.seconds) == (640, 10.0)
    # The last minute alone counts: 70 seconds lie between.
    second = meter.figures(Counter(ok=590, dns=120))
    assert second.images_per_second == 1.0 and second.made == 90


def test_a_log_file_gets_a_line_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 5.0, 11.0])
    monkeypatch.setattr("data_prep.ingest.progress.time.monotonic", lambda: next(clock))
    with ProgressLine("ingest") as show:
        show(figures())
        show(figures())
    assert capsys.readouterr().err == f"ingest: 100/1000 rows, {figures().line()}\n"


def test_silent_is_silent(capsys):
    with ProgressLine("ingest", silent=True) as show:
        show(figures())
    assert capsys.readouterr().err == ""
