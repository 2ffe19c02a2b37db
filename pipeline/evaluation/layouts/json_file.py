"""JSON files of annotations: read, and told apart by what they hold."""

import json

from data_prep.errors import ConfigError, Problem
from data_prep.storage import Folder

LOOKED_AT = 100
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip file", b"<": "a page or XML"}
# Layout by the lists that a file holds, and keys, one of which an entry of each must have.
_KINDS = {
    "karpathy": ("a Karpathy split", {"images": {"sentences"}}),
    "coco": ("COCO captions", {"images": {"file_name"}, "annotations": {"caption"}}),
    "vqa_questions": ("VQAv2 questions", {"questions": {"question_id"}}),
    "vqa_annotations": ("VQAv2 annotations", {"annotations": {"answers"}}),
    "coco_instances": ("COCO instances", {"annotations": {"bbox", "segmentation"}}),
}


def load_json(path: str, key: str) -> dict:
    """The object in a JSON file, local or behind a URL.

    Raises:
        ConfigError: there is no such file, or it holds no JSON object; it says what was seen.
    """
    place, _, name = path.rpartition("/")
    remedy = "name the annotations' JSON file"
    try:
        data = Folder(place or ("/" if path.startswith("/") else "."), key).read(name)
    except OSError as error:
        rule = f"is a file that can be read ({error.strerror or error})"
        raise ConfigError([Problem(key, path, rule, remedy)]) from None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        seen = next((kind for start, kind in _ARCHIVES.items() if data.startswith(start)), None)
        seen = seen or (f"{error}" if data else "an empty file")
        raise ConfigError([Problem(key, path, f"holds JSON; seen: {seen}", remedy)]) from None
    if not isinstance(found, dict):
        rule = f"holds a JSON object; seen: {_word(found)}"
        raise ConfigError([Problem(key, path, rule, remedy)])
    return found


def kind_of(data: dict) -> tuple[str | None, str]:
    """What a file holds: a name of `_KINDS` or None, and words for messages."""
    for kind, (words, lists) in _KINDS.items():
        if all(_has(data.get(name), keys) for name, keys in lists.items()):
            return kind, words
    keys = ", ".join(repr(key) for key in list(data)[:8])
    return None, f"an object with the keys {keys}" if data else "an empty object"


def check_kind(data: dict, kind: str, path: str, key: str) -> list[Problem]:
    """A problem where a file holds something of another kind than it should."""
    found, seen = kind_of(data)
    if found == kind:
        return []
    rule = f"holds {_KINDS[kind][0]}; seen: {seen}"
    return [Problem(key, path, rule, "name another file, or another layout")]


def _has(entries: object, keys: set[str]) -> bool:
    """Whether one of a list's first objects has one of the keys."""
    first = entries[:LOOKED_AT] if isinstance(entries, list) else []
    return any(keys & entry.keys() for entry in first if isinstance(entry, dict))


def _word(value: object) -> str:
    return f"a list of {len(value):,}" if isinstance(value, list) else f"only {value!r:.60}"
