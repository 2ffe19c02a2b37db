"""X-Robots-Tag: whether the owner of an image keeps it out of collections like ours.

    X-Robots-Tag: noindex, nofollow
    X-Robots-Tag: roseate: noai
    X-Robots-Tag: unavailable_after: 25 Jun 2010 15:00:00 PST

There is no RFC; the grammar is the one that search engines publish: directives between commas, for all
unless a user agent's name and a colon stand before them, several headers. How we read what they leave
open: semicolons divide as well; a name holds to the end of its header or to the next name; directives
that take a value (max-snippet: 3) are no names; what we do not know is passed over; case does not
matter. Dates hold commas and colons: one goes on until what follows is no part of a date.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from data_prep.fetch.failures import FetchError
from data_prep.schema import Status

_UNAVAILABLE_AFTER = "unavailable_after"
_WITH_VALUE = frozenset(
    {_UNAVAILABLE_AFTER, "max-snippet", "max-image-preview", "max-video-preview"}
)
_NAMED = re.compile(r"\s*([A-Za-z][A-Za-z0-9_./-]*)\s*:(.*)", re.DOTALL)
# A part of a date between commas: "Friday", "25-Jun-10 15:00 PST", "2030-01-01T00:00:00+01:00".
_DATE_PART = re.compile(
    r"\s*(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?\s*)?"
    r"(?:(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s+\d{1,2}|\d.*)?\s*",
    re.IGNORECASE | re.DOTALL,
)
_WEEKDAY = re.compile(r"^(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,? ", re.IGNORECASE)
_MAX_CHARACTERS = 8192
_FORMATS = (
    "%d %b %Y %H:%M:%S",
    "%d %B %Y",
    "%d %b %Y",
    "%B %d %Y",
    "%b %d %Y",
    "%d-%b-%y %H:%M:%S",
)


def opted_out(
    headers: Iterable[str], directives: frozenset[str], agent: str, now: datetime
) -> str | None:
    """The first directive that keeps an image out, or None.

    Args:
        headers: values of all X-Robots-Tag headers of a response.
        directives: in lower case, those that count; with any of them, so does an `unavailable_after`
            that has passed.
        agent: our product token, in lower case.
        now: with time zone.
    """
    if not directives:
        return None
    for header in headers:
        for name, value in _rules(header[:_MAX_CHARACTERS], agent):
            if name in directives:
                return name
            if name == _UNAVAILABLE_AFTER and (date := parse_date(value)) and date <= now:
                return f"{name}: {value}"
    return None


def check_opt_out(headers: Iterable[str], directives: frozenset[str], agent: str) -> None:
    """As `opted_out`, now.

    Raises:
        FetchError: with refused_opt_out.
    """
    rule = opted_out(headers, directives, agent.lower(), datetime.now(UTC))
    if rule is not None:
        raise FetchError(Status.REFUSED_OPT_OUT, f"X-Robots-Tag says {rule}")


def _rules(header: str, agent: str) -> Iterable[tuple[str, str]]:
    """(directive in lower case, value) of each rule that is for us."""
    is_ours = True
    parts = re.split("[,;]", header)
    i = 0
    while i < len(parts):
        part = parts[i]
        i += 1
        while (named := _NAMED.fullmatch(part)) and named[1].lower() not in _WITH_VALUE:
            # A product token may come with a version, which is not part of the name.
            is_ours = named[1].lower().partition("/")[0] == agent
            part = named[2]
        if part.strip().startswith("*") and part.strip()[1:].lstrip().startswith(":"):
            is_ours, part = True, part.partition(":")[2]
        name, _, value = part.strip().partition(":")
        name, value = name.strip().lower(), value.strip()
        if name == _UNAVAILABLE_AFTER:
            while i < len(parts) and parts[i].strip() and _DATE_PART.fullmatch(parts[i]):
                value += f",{parts[i]}"
                i += 1
        if is_ours and name:
            yield name, value


def parse_date(text: str) -> datetime | None:
    """A date in one of the forms that are in use (RFC 822, RFC 850, asctime, ISO 8601); None if in none.

    Without a time zone it is in UTC; without a time, it is midnight.
    """
    text = " ".join(text.split())
    date = _iso(text) or _rfc822(text) or _loose(text)
    if date is not None and date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return date


def _iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _rfc822(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _loose(text: str) -> datetime | None:
    text = _WEEKDAY.sub("", text).replace(",", "")
    text = re.sub(r" (UTC|GMT|Z)$", "", text)
    for form in _FORMATS:
        try:
            return datetime.strptime(text, form)
        except ValueError:
            continue
    return None
