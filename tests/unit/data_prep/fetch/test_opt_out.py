from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.fetch.opt_out import opted_out, parse_date

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "none"})


def rule(*headers, directives=DIRECTIVES, agent="roseate", now=NOW):
    return opted_out(headers, directives, agent, now)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (["noai"], "noai"),
        (["  NoAI  "], "noai"),
        (["nofollow, noimageai"], "noimageai"),
        (["noarchive,noai"], "noai"),
        (["noai; foo"], "noai"),
        (["foo; noai"], "noai"),
        (["all", "noai"], "noai"),
        (["none"], "none"),
        (["*: noai"], "noai"),
        (["* : noai"], "noai"),
        (["roseate: noai"], "noai"),
        (["Roseate:NOAI"], "noai"),
        (["roseate/2.0: noai"], "noai"),
        (["otherbot: nofollow, roseate: noai"], "noai"),
        (["otherbot: nofollow", "noindex"], "noindex"),
        (["roseate: otherbot: nofollow, roseate: noindex"], "noindex"),
        (["max-snippet: 3, noai"], "noai"),
        (["max-image-preview:large, max-video-preview: -1, noindex"], "noindex"),
        (["unknown, , ,, noai"], "noai"),
        (["unavailable_after: tomorrow, noai"], "noai"),
        (["roseate: unavailable_after: 1 Jan 2020 10:00:00 GMT"], "unavailable_after"),
        (["otherbot: noai, *: noindex"], "noindex"),
        ([], None),
        ([""], None),
        (["all"], None),
        (["nofollow, noarchive"], None),
        (["noaiarchive"], None),
        (["no ai"], None),
        (["otherbot: noai"], None),
        (["otherbot: nofollow, noai, noindex"], None),
        (["roseatebot: noai"], None),
        (["rose: noai"], None),
        (["roseate: nofollow, otherbot: noai"], None),
        (["otherbot: unavailable_after: 1 Jan 2020 10:00:00 GMT"], None),
        (["unavailable_after: never"], None),
        (["unavailable_after:"], None),
        ([":"], None),
    ],
)
def test_headers(headers, found):
    result = rule(*headers)
    assert (result or "").partition(":")[0] == (found or "")


DATES = [
    *("25 Jun {y} 15:00:00 PST", "25 Jun {y} 15:00:00 +0200", "25-Jun-{y} 15:00:00 EST"),
    *("Fri, 25 Jun {y} 15:00:00 GMT", "Friday, 25-Jun-{yy} 15:00:00 GMT", "{y}-06-25"),
    *(
        "{y}-06-25T15:00:00Z",
        "{y}-06-25T15:00:00+01:00",
        "{y}-06-25 15:00:00",
        "Fri Jun 25 15:00:00 {y}",
    ),
    *(
        "June 25, {y}",
        "25 June {y}",
        "Jun 25 {y}",
        "Friday, June 25, {y}",
        "25-Jun-{yy} 15:00:00 UTC",
    ),
]


@pytest.mark.parametrize("form", DATES)
def test_dates_that_have_passed_and_others(form):
    past, future = (form.format(y=y, yy=y % 100) for y in (2021, 2037))
    assert parse_date(past) < NOW < parse_date(future)
    assert rule(f"unavailable_after: {past}") == f"unavailable_after: {past}"
    assert rule(f"unavailable_after: {future}") is None
    # What follows a date is neither lost nor taken for a part of it.
    assert rule(f"nofollow, Unavailable_After:{future}, noai") == "noai"
    assert rule(f"otherbot: unavailable_after: {past}, roseate: noindex") == "noindex"


def test_a_date_is_over_at_its_moment():
    moment = f"unavailable_after: {format_datetime(NOW)}"
    assert rule(moment) and rule(moment, now=NOW - timedelta(seconds=1)) is None


def test_no_directives_turn_the_header_off():
    assert rule("noai, unavailable_after: 2001-01-01", directives=frozenset()) is None


def test_a_header_without_end_is_read_in_part():
    assert rule("a," * 100_000 + "noai") is None


names = st.sampled_from(["roseate", "Roseate", "otherbot", "*", None])
words = st.sampled_from(["noai", "NOINDEX", "nofollow", "all", "max-snippet: 3", "x-y"])
spaces = st.sampled_from(["", " ", "  ", "\t"])


@given(st.lists(st.tuples(names, st.lists(words, min_size=1, max_size=4)), max_size=5), st.data())
def test_groups_written_in_any_way(groups, data):
    """One header for each group, whatever the spaces: the directives of ours and everyone's count."""
    headers = []
    for name, directives in groups:
        space = data.draw(spaces)
        text = f"{space},{space}".join(directives)
        headers.append(text if name is None else f"{space}{name}{space}:{space}{text}")
    ours = [
        d.lower()
        for name, ds in groups
        if name is None or name.lower() in ("roseate", "*")
        for d in ds
    ]
    assert bool(rule(*headers)) is bool(DIRECTIVES & set(ours))


@given(st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1)), st.integers(-12, 14))
def test_dates_of_any_time_and_zone(date, hours):
    date = date.replace(microsecond=0, tzinfo=timezone(timedelta(hours=hours)))
    for text in (format_datetime(date), date.isoformat()):
        assert bool(rule(f"unavailable_after: {text}")) is (date <= NOW)


@given(
    st.lists(st.text(max_size=60) | st.text("unavailable_after:,; 0123456789-JanGMT", max_size=60))
)
def test_nothing_in_a_header_raises(headers):
    rule(*headers)
