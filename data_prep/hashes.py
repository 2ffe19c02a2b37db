"""Hashes that a table may expect its images to have, as text."""

HASH_DIGITS = {"sha256": 64, "md5": 32, "phash": 16}
_HEXADECIMAL = frozenset("0123456789abcdef")


def parse_hash(kind: str, value: str | None) -> str | None:
    """The hash in lower-case hexadecimal; None where the value is no hash of that kind."""
    text = (value or "").strip().lower()
    return text if len(text) == HASH_DIGITS[kind] and set(text) <= _HEXADECIMAL else None
