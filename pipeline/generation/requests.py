"""What `roseate generate` is asked: prompts with images and examples, from arguments or JSON lines."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_prep.errors import ConfigError, Problem
from data_prep.image.formats import DECODE_ERRORS, FORMATS
from pipeline.prompts import Part, place_images

KEYS = {"id", "images", "prompt", "shots"}
_FORM = (
    '{"id": "1", "images": ["a.png"], "prompt": "", "shots": [{"image": "b.png", "text": "a cat"}]}'
)


@dataclass(frozen=True)
class Request:
    """One text to be generated.

    Attributes:
        id: names it in the output.
        images: files, in the order of the prompt's marks.
        prompt: beginning of the text; `<image>` says where an image stands, by default in front.
        shots: examples, each an image file and its whole text.
        key: that names it in messages.
    """

    id: str
    images: list[Path]
    prompt: str = ""
    shots: tuple[tuple[Path, str], ...] = ()
    key: str = "IMAGE"

    @property
    def files(self) -> list[Path]:
        """All images, in the order in which they stand."""
        return [*(image for image, _ in self.shots), *self.images]

    def parts(self) -> list[Part]:
        """The prompt, its files read.

        Raises:
            ConfigError: marks and images do not fit, or a file cannot be read.
        """
        parts: list[Part] = []
        for image, text in self.shots:
            parts += [_read(image, self.key), text]
        images = [_read(image, self.key) for image in self.images]
        return parts + place_images(self.prompt, images, f"{self.key} prompt")

    def problems(self) -> list[Problem]:
        """Files that are no images by their first bytes, and marks that do not fit; nothing is decoded."""
        found = [problem for file in self.files for problem in _look(file, self.key)]
        try:
            place_images(self.prompt, [b""] * len(self.images), f"{self.key} prompt")
        except ConfigError as error:
            found += error.problems
        if not self.files and not self.prompt:
            found.append(Problem(self.key, None, "has an image or a prompt", "name an image file"))
        return found


@dataclass(frozen=True)
class WrongRequest:
    """A line that cannot be asked, in the place of its request.

    Attributes:
        id: of the line where it has one of its own, else its number.
        problems: what is wrong with it.
    """

    id: str
    problems: list[Problem]


def read_lines(lines: Iterable[bytes], folder: Path) -> list[Request | WrongRequest]:
    """Requests of JSON lines, and what is wrong with each.

    Args:
        lines: UTF-8, each as in `_FORM`; only `images` or `prompt` must be there, and `id` is the number of
            the line unless it is given. Empty lines are passed over.
        folder: that relative paths are of.
    """
    found: list[Request | WrongRequest] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, name = f"line {number}", str(number)
        try:
            row = _parse(line, key)
            name = str(row.get("id", number))
            if (first := seen.setdefault(name, number)) != number:
                rule = f"is given once; line {first} has it too"
                name = key  # else a second start could not tell the two apart
                raise _wrong(key, row["id"], rule, "give each line an id of its own")
            request = _request(row, name, key, folder)
            if problems := request.problems():
                raise ConfigError(problems)
            found.append(request)
        except ConfigError as error:
            found.append(WrongRequest(name, error.problems))
    return found


def _parse(line: bytes, key: str) -> dict:
    shown = line[:80].decode(errors="replace")
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # halves of a surrogate pair are no text
    except ValueError as error:
        raise _wrong(key, shown, f"is JSON ({error})", f"e.g. {_FORM}") from None
    if not isinstance(row, dict):
        raise _wrong(key, shown, "is a JSON object", f"e.g. {_FORM}")
    if unknown := sorted(row.keys() - KEYS):
        rule = f"has the keys {', '.join(sorted(KEYS))}; not {', '.join(unknown)}"
        raise _wrong(key, shown, rule, f"e.g. {_FORM}")
    if not isinstance(row.get("id", ""), str | int):
        raise _wrong(key, row["id"], "is a text or a whole number, as an id", f"e.g. {_FORM}")
    images, shots = row.get("images", []), row.get("shots", [])
    fits = (
        _texts(images)
        and isinstance(row.get("prompt", ""), str)
        and isinstance(shots, list)
        and all(isinstance(s, dict) and s.keys() == {"image", "text"} for s in shots)
        and all(_texts([*s.values()]) for s in shots)
    )
    if not fits:
        rule = "has texts in images, a text as prompt, and an image and a text in each of shots"
        raise _wrong(key, shown, rule, f"e.g. {_FORM}")
    return row


def _request(row: dict, name: str, key: str, folder: Path) -> Request:
    return Request(
        id=name,
        images=[folder / image for image in row.get("images", [])],
        prompt=row.get("prompt", ""),
        shots=tuple((folder / shot["image"], shot["text"]) for shot in row.get("shots", [])),
        key=key,
    )


def read_shots(texts: Iterable[str]) -> tuple[tuple[tuple[Path, str], ...], list[Problem]]:
    """Examples written IMAGE=TEXT, and what is wrong with the others."""
    shots, problems = [], []
    for text in texts:
        image, _, caption = text.partition("=")
        if not image or not caption:
            problems.append(Problem("--shot", text, "is written IMAGE=TEXT", "e.g. a.png='a cat'"))
            continue
        shots.append((Path(image), caption))
    return tuple(shots), problems


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _wrong(key: str, value: object, rule: str, remedy: str) -> ConfigError:
    return ConfigError([Problem(key, value, rule, remedy)])


def _look(file: Path, key: str) -> list[Problem]:
    """What its header tells of a file; what is wrong further down, decoding tells."""
    try:
        Image.open(file, formats=FORMATS).close()
    except FileNotFoundError:
        return [Problem(key, str(file), "is a file", "correct the path")]
    except DECODE_ERRORS as error:
        rule = f"is an image ({getattr(error, 'strerror', None) or type(error).__name__})"
        return [Problem(key, str(file), rule, f"give one of {', '.join(FORMATS)}")]
    return []


def _read(file: Path, key: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        rule = f"can be read ({error.strerror})"
        raise _wrong(key, str(file), rule, "correct the path") from None
