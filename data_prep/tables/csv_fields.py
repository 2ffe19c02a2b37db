"""Records of CSV by RFC 4180, on bytes.

Quotes that do not open a field are text, as in `a 5" nail`, which the RFC forbids and tables have.
"""

import re

# Possessive throughout: a record costs no more than its length, however its quotes are set.
_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"'
_FIELD = rb'(?:%s(?=,|\r?\n|\r?\Z)|(?!")[^,\n]*+)' % _QUOTED
_RECORD = re.compile(rb"%s(?:,%s)*+\r?(?:\n|\Z)" % (_FIELD, _FIELD))
_PART = re.compile(rb'"([^"]*+(?:""[^"]*+)*+)"|([^,]*+)')


def match_record(data: bytes, start: int, limit: int) -> int | None:
    """Where the well-formed record that begins at `start` ends, newline included.

    Returns:
        The end, which is `limit` where nothing but the end of the bytes closes it; or None.
    """
    found = _RECORD.match(data, start, limit)
    return found.end() if found else None


def csv_fields(record: bytes) -> list[bytes]:
    """The fields of one record; split at every comma if its quotes are not well formed."""
    body = record.removesuffix(b"\n").removesuffix(b"\r")
    if b'"' not in body or match_record(body, 0, len(body)) != len(body):
        return body.split(b",")
    fields, place = [], 0
    while True:
        part = _PART.match(body, place)
        quoted, plain = part.groups()
        fields.append(plain if quoted is None else quoted.replace(b'""', b'"'))
        place = part.end() + 1
        if place > len(body):
            return fields
