from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from data_prep.fetch.retry import pause_seconds, retry_after_seconds

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120),
        (" 0 ", 0),
        ("1" * 9, 7 * 24 * 3600),
        ("1" * 30, None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        ("Mon, 01 Jun 2026 14:01:00 +0200", 60),
        ("Monday, 01-Jun-26 12:01:00 GMT", 60),
        ("Mon Jun  1 12:01:00 2026", 60),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 7 * 24 * 3600),
    ],
)
def test_seconds_and_dates(value, seconds):
    assert retry_after_seconds(value, NOW) == seconds


def test_pauses_double_and_differ():
    for attempt in (1, 2, 3):
        pauses = [pause_seconds(attempt) for _ in range(200)]
        middle = 0.5 * 2 ** (attempt - 1)
        assert middle / 2 <= min(pauses) < max(pauses) <= middle * 1.5
        assert max(pauses) - min(pauses) > middle / 4
