"""The members of one sample, out of the bytes that they take in a tar.

A sample is a run of members with one key, which the index finds as one span: one read, and no file
object. Written by hand because `tarfile` takes ten times as long for the three members of a sample.
"""

import re
from collections.abc import Iterator

BLOCK = 512
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
TEXT_EXTENSIONS = ("txt", "text")
PROMPT_EXTENSION = "prompt"
CUT_OFF = "tar members that are cut off or not there"
_PATH = re.compile(rb"(?:^|\n)\d+ path=([^\n]*)\n")


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, as WebDataset divides them: at the first dot of the file name.

    Both are empty for what belongs to no sample: a hidden file, or one without extension.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    if not stem or not dot:
        return "", ""
    return folder + slash + stem, extension.lower()


class Prompt(str):
    """A text that is given and not to be learnt: a question before its answer."""


def kind_of(extension: str) -> tuple[str | None, int]:
    """``image``, ``text``, ``prompt`` or None for anything else, and the place in an interleaved document.

    An interleaved document has members ``key.0.txt``, ``key.1.jpg``, ... in reading order; in a pair
    the image (place -3) stands before the prompt, if it has one (-2), and that before the text (-1).
    """
    if extension == PROMPT_EXTENSION:
        return "prompt", -2
    number, dot, last = extension.rpartition(".")
    if dot and not (number.isdecimal() and len(number) < 10):
        return None, 0
    if last in IMAGE_EXTENSIONS:
        return "image", int(number) if dot else -3
    if last in TEXT_EXTENSIONS:
        return "text", int(number) if dot else -1
    return None, 0


def sample_parts(span: bytes) -> tuple[str, list[bytes | str]]:
    """Key of a sample, and its images (bytes, encoded) and texts in reading order.

    A prompt among the texts is a `Prompt`.

    Raises:
        ValueError: not whole tar members of one sample, a text that is no UTF-8, or neither image nor
            text; the message says which.
    """
    found: list[tuple[int, str, bytes]] = []
    keys = set()
    for name, start, end in members(span):
        key, extension = split_name(name)
        if not key:
            continue
        keys.add(key)
        kind, place = kind_of(extension)
        if kind:
            found.append((place, kind, span[start:end]))
    if len(keys) != 1:
        raise ValueError(f"members of {len(keys)} samples where one was expected")
    if not found:
        raise ValueError("a sample without image and without text")
    found.sort(key=lambda part: part[0])
    try:
        as_part = {"text": bytes.decode, "prompt": lambda data: Prompt(data.decode())}
        parts = [as_part.get(kind, bytes)(data) for _, kind, data in found]
    except UnicodeDecodeError as error:
        raise ValueError(f"the text is not UTF-8: {error}") from None
    return keys.pop(), parts


def members(span: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of the data of every regular member; pax and GNU long names are followed.

    Raises:
        ValueError: the bytes are no whole tar members.
    """
    at, long_name, kind = 0, None, b""
    while at < len(span):
        header = span[at : at + BLOCK]
        if len(header) < BLOCK or not header[0]:
            raise ValueError(CUT_OFF)
        try:
            size = _number(header[124:136])
        except ValueError:
            raise ValueError("a tar header with a broken size") from None
        kind, start = header[156:157], at + BLOCK
        end = start + size
        if end > len(span):
            raise ValueError(CUT_OFF)
        if kind in (b"0", b"\0"):
            yield long_name or _name(header), start, end
            long_name = None
        elif kind == b"L":
            long_name = span[start:end].rstrip(b"\0").decode("utf-8", "backslashreplace")
        elif kind == b"x":
            path = _PATH.search(span[start:end])
            long_name = path[1].decode("utf-8", "backslashreplace") if path else long_name
        else:
            long_name = None  # it was the name of a folder or a link
        at = end + -size % BLOCK
    if kind in (b"L", b"x"):  # and the member that it belongs to does not follow
        raise ValueError(CUT_OFF)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "backslashreplace")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for sizes beyond 8 GiB
        return int.from_bytes(field[1:], "big")
    size = int(field.rstrip(b"\0 ") or b"0", 8)
    if size < 0:
        raise ValueError("a size below zero")
    return size
