"""When to ask again: Retry-After, and the pause between two tries."""

import random
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp

_FIRST_PAUSE_SECONDS = 0.5
_SECONDS = re.compile(r"[0-9]{1,9}")
_LONGEST_SECONDS = 7 * 24 * 3600.0


def retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds that a response asks to be left alone for."""
    return retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC))


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """The value of a Retry-After header, RFC 9110 section 10.2.3: seconds, or an HTTP date.

    Args:
        value: None where there is no such header.
        now: with time zone.

    Returns:
        seconds from now, 0 for a date that has passed, a week at most; None for what is neither.
    """
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return min(float(value), _LONGEST_SECONDS)
    try:
        date = parsedate_to_datetime(value)
        seconds = (date.replace(tzinfo=date.tzinfo or now.tzinfo) - now).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(seconds, 0.0), _LONGEST_SECONDS)


def pause_seconds(attempt: int) -> float:
    """How long to wait before the try number `attempt` (from 1): doubled each time, by chance half as
    long or half as long again, so that rows that failed together do not come back together."""
    return _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
