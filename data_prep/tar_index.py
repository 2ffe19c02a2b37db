"""Index of one tar that others have made, by one pass from front to back.

Images are judged by their headers alone: one that breaks off is found when it is read.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.image.formats import DECODE_ERRORS, FORMATS
from data_prep.schema import INDEX_DTYPE, ShardEntry, Status
from data_prep.storage import Folder, write_file
from data_prep.tar_members import BLOCK, kind_of, split_name

NOTE_SUFFIX = ".note.json"


def index_tar(tars: str, file_name: str, index: Path, name: str, path: str) -> dict:
    """Index one tar; returns the note that it also leaves beside the index, or {"error": why}."""
    records: list[tuple] = []
    statuses: Counter = Counter()
    try:
        with Folder(tars, "TARS").open(file_name) as raw:
            hashed = _Hashed(raw)
            with tarfile.open(fileobj=hashed, mode="r|", tarinfo=_StrictTarInfo) as tar:
                for sample in _samples(tar):
                    record, status = _record(sample, len(records))
                    statuses[str(status)] += 1
                    if record is not None:
                        records.append(record)
            while hashed.read(1 << 20):  # what stands behind the end of the archive
                pass
    except (tarfile.TarError, OSError, ValueError) as error:
        return {"error": str(error)}
    data = io.BytesIO()
    np.save(data, np.array(records, INDEX_DTYPE))
    write_file(index / f"{name}.npy", data.getvalue())
    entry = ShardEntry(
        name=name,
        path=path,
        rows=sum(statuses.values()),
        samples=len(records),
        bytes=hashed.bytes,
        sha256=hashed.sha256.hexdigest(),
    )
    note = {"entry": entry.model_dump(), "statuses": dict(statuses)}
    write_file(index / f"{name}{NOTE_SUFFIX}", json.dumps(note).encode())
    return note


class _StrictTarInfo(tarfile.TarInfo):
    """`tarfile` takes a broken or missing header after the first for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # the zeros that a whole tar ends with
            raise
        except tarfile.EmptyHeaderError:
            raise tarfile.ReadError(f"it breaks off at byte {tar.offset}") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from None


class _Hashed:
    """A file that is read once, from front to back, and hashed on the way."""

    def __init__(self, raw) -> None:
        self._raw = raw
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self.sha256.update(data)
        self.bytes += len(data)
        return data


def _samples(tar: tarfile.TarFile) -> Iterator[list[tuple]]:
    """Lists of (key, extension, start, end, data) of members that follow one another with one key."""
    sample: list[tuple] = []
    too_large = 0xFFFFFFFF  # a sample of more does not fit the index; it is not read into memory
    for member in tar:
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):  # all that is read later
            continue
        key, extension = split_name(member.name)
        if not key:
            continue
        if sample and sample[0][0] != key:
            yield sample
            sample = []
        wanted = kind_of(extension)[0] and member.size < too_large
        data = tar.extractfile(member).read() if wanted else b""
        end = member.offset_data + member.size + -member.size % BLOCK
        sample.append((key, extension, member.offset, end, data))
    if sample:
        yield sample


def _record(sample: list[tuple], number: int) -> tuple[tuple | None, Status]:
    parts = [(*kind_of(extension), data) for _, extension, _, _, data in sample]
    parts.sort(key=lambda part: part[1])
    images = [data for kind, _, data in parts if kind == "image"]
    texts = [data for kind, _, data in parts if kind == "text"]
    if not images:
        return None, Status.MISSING_IMAGE
    if not texts:
        return None, Status.MISSING_CAPTION
    start, end = sample[0][2], sample[-1][3]
    if end - start > 0xFFFFFFFF or len(images) > 0xFFFF:  # what the index can hold
        return None, Status.TOO_MANY_BYTES
    try:
        for text in texts:
            text.decode()
        # Reads the header alone.
        width, height = Image.open(io.BytesIO(images[0]), formats=FORMATS).size
    except DECODE_ERRORS:
        return None, Status.UNDECODABLE
    digest = hashlib.sha256(images[0]).digest()[:8]
    sides = (min(width, 0xFFFF), min(height, 0xFFFF))
    text_bytes = sum(map(len, texts))
    content_hash = int.from_bytes(digest, "big")
    return (start, end - start, number, content_hash, *sides, text_bytes, len(images)), Status.OK
