"""Labelled files in one of the field's layouts to a dataset folder, to be trained on like any other."""

import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

from PIL import Image

from data_prep.errors import ConfigError, Problem
from data_prep.image.formats import DECODE_ERRORS, EXTENSIONS, FORMATS
from data_prep.index_folder import index_folder
from data_prep.tar_members import PROMPT_EXTENSION
from pipeline.evaluation.config import EvaluationData
from pipeline.evaluation.layouts.read import read_records
from pipeline.evaluation.layouts.record import Record
from pipeline.prompts import VQA_FORM

SHARD_SAMPLES = 1000


def label_folder(
    data: EvaluationData,
    output: Path,
    *,
    class_form: str = "{name}",
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, object]:
    """Write a dataset folder; it has its name only when it is whole, and equal files give equal bytes.

    Of an image with several captions each is a sample. A question is a sample with the prompt
    "Question: ... Short answer:" and, as its text, a space and the answer that most people gave; only the
    answer is learnt. The text of a class is `class_form` with its name.

    Args:
        data: which files, and by which layout.
        output: to be made.
        class_form: text of a class, with {name}.
        advance: called with (records done, records in all).

    Returns:
        {folder, layout, counts of the records, statuses of the samples, samples, fingerprint}.

    Raises:
        ConfigError: the files cannot be read, or the folder is there already.
    """
    problems = []
    if output.exists():
        rule = "is not there yet"
        problems.append(Problem("OUTPUT", str(output), rule, "name another folder, or remove it"))
    if "{name}" not in class_form:
        rule = "has {name} where the name of the class stands"
        problems.append(Problem("--class-form", class_form, rule, "e.g. 'a photo of a {name}'"))
    if problems:
        raise ConfigError(problems)
    records = read_records(data, "IMAGES")
    statuses: Counter[str] = Counter()
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        (partial / "shards").mkdir(parents=True)
        samples = _samples(records.items, class_form, statuses, advance)
        _write_shards(partial / "shards", samples)
        if not statuses["ok"]:
            rule = f"has a picture that can be decoded: {dict(statuses)}"
            raise ConfigError([Problem("IMAGES", data.path, rule, "name another folder")])
        indexed = index_folder(str(partial), workers=1)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "folder": str(output),
        "layout": records.layout,
        "records": records.counts,
        "statuses": dict(statuses),
        "samples": indexed["samples"],
        "classes": records.class_names,
        "fingerprint": indexed["fingerprint"],
    }


def texts_of(record: Record, class_form: str) -> list[tuple[str | None, str]]:
    """(prompt, text) of each sample of a record."""
    if record.question is not None:
        answers = list(record.texts)
        best = max(answers, key=answers.count)
        return [(VQA_FORM.format(question=record.question), f" {best}")]
    if record.label is not None:
        return [(None, class_form.format(name=record.texts[0]))]
    return [(None, text) for text in record.texts]


def _samples(
    records: list[Record],
    class_form: str,
    statuses: Counter,
    advance: Callable[[int, int], None],
) -> Iterator[dict[str, bytes]]:
    """Members of each sample by extension, in the order of the records."""
    for number, record in enumerate(records):
        try:
            extension, image = _storable(record.image.open())
        except DECODE_ERRORS:
            statuses["undecodable"] += 1
            continue
        finally:
            advance(number + 1, len(records))
        for prompt, text in texts_of(record, class_form):
            members = {extension: image}
            if prompt is not None:
                members[PROMPT_EXTENSION] = prompt.encode()
            statuses["ok"] += 1
            yield members | {"txt": text.encode()}


def _storable(data: bytes) -> tuple[str, bytes]:
    """(extension, bytes) of an image as a shard holds it; what shards do not hold becomes PNG."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    extension = EXTENSIONS.get(image.format)
    if extension is not None:
        return extension, data
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return "png", buffer.getvalue()


def _write_shards(folder: Path, samples: Iterator[dict[str, bytes]]) -> None:
    numbered = enumerate(samples)
    for shard in count():
        part = list(islice(numbered, SHARD_SAMPLES))
        if not part:
            return
        path = folder / f"{shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, members in part:
                for extension, data in members.items():
                    member = tarfile.TarInfo(f"{number:010d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
