"""The dataset folder in types: statuses, index and manifest; the ledger is in `data_prep/ledger.py`.

    <folder>/shards/000000.tar  ledger/000000.parquet  index/000000.npy  manifest.json  report.html

Tars are plain WebDataset: `{key}.jpg|png|webp`, `{key}.txt`, `{key}.json` with key `f"{row:09d}"`,
in row order; interleaved documents have `{key}.0.txt`, `{key}.1.jpg`, ... in reading order. The ledger
has one row for every input row, the index one record per stored sample. `bitmaps/` may hold
selections (`data_prep/bitmap.py`).
"""

import hashlib
import json
from enum import StrEnum
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.errors import ConfigError, Problem
from data_prep.storage import Folder

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"


class Status(StrEnum):
    """How an input row ended. Every row of the table has exactly one."""

    OK = "ok"
    # What the table holds.
    INVALID_ROW = "invalid_row"
    MISSING_URL = "missing_url"
    MISSING_CAPTION = "missing_caption"
    MISSING_IMAGE = "missing_image"
    MISSING_HASH = "missing_hash"
    INVALID_URL = "invalid_url"
    INVALID_CAPTION = "invalid_caption"
    # What we do not ask for, or may not have.
    REFUSED_SCHEME = "refused_scheme"
    REFUSED_PRIVATE_ADDRESS = "refused_private_address"
    REFUSED_ROBOTS = "refused_robots"
    REFUSED_OPT_OUT = "refused_opt_out"
    # What the web does.
    ROBOTS_UNREACHABLE = "robots_unreachable"
    DNS = "dns"
    TLS = "tls"
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    HTTP_404 = "http_404"
    HTTP_ERROR = "http_error"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_MANY_BYTES = "too_many_bytes"
    MALFORMED_RESPONSE = "malformed_response"
    WRONG_CONTENT_TYPE = "wrong_content_type"
    # What the file is.
    HASH_MISMATCH = "hash_mismatch"
    TOO_MANY_PIXELS = "too_many_pixels"
    UNDECODABLE = "undecodable"
    DECODER_CRASHED = "decoder_crashed"
    DECODER_MEMORY = "decoder_memory"
    DECODER_TIMEOUT = "decoder_timeout"
    FILTERED_SIZE = "filtered_size"
    FILTERED_ASPECT_RATIO = "filtered_aspect_ratio"
    # Our own failure.
    INTERNAL_ERROR = "internal_error"


# One record per sample, in tar order; 38 bytes, packed, so a shard's index can be memory-mapped.
INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the sample's first tar header
        ("bytes", "<u4"),  # from there to behind its last member, padding included
        ("row", "<u8"),  # row of the input table; in a folder indexed later, number of the sample
        ("content_hash", "<u8"),  # first 8 bytes of the sha256 of the first image as stored
        ("width", "<u2"),  # of the first image as stored, pixels
        ("height", "<u2"),
        ("text_bytes", "<u4"),  # of all texts together
        ("num_images", "<u2"),
    ]
)


class ShardEntry(BaseModel):
    """One shard as the manifest lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=r"^\w[\w.-]*$", description="stem shared by the ledger and index files: 000000"
    )
    path: str = Field(description="of the tar, below the dataset folder, or a whole URL or path")
    rows: int = Field(ge=0, description="input rows planned into this shard")
    samples: int = Field(ge=0, description="rows that ended ok and are stored")
    bytes: int = Field(ge=0, description="size of the tar in bytes")
    # Names files of the cache: a manifest from elsewhere must not name others by it.
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the tar, hexadecimal")


class Manifest(BaseModel):
    """What a whole dataset folder holds; written last, so its presence means complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(SCHEMA_VERSION, description="version of the folder layout")
    source: str = Field(description="name of the source in the config")
    input_fingerprint: str = Field(description="sha256 over the input table's bytes")
    policy_hash: str = Field(description="sha256 of the settings that decide what is stored")
    rows: int = Field(description="input rows")
    samples: int = Field(description="stored samples")
    statuses: dict[str, int] = Field(description="rows per terminal status")
    shards: list[ShardEntry] = Field(description="shards in row order")

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the dataset, sha256 of what it holds, whatever its place and name."""
        # Shard by shard: as one text, a manifest of 40,000 takes hundreds of megabytes.
        digest = hashlib.sha256()
        head = self.model_dump(mode="json", exclude={"source", "shards"})
        digest.update(_canonical(head))
        for shard in self.shards:
            digest.update(_canonical(shard.model_dump(exclude={"path"})))
        return digest.hexdigest()


def canonical_hash(value: object) -> str:
    """sha256 (hexadecimal) of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(_canonical(value)).hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def open_index(folder: Folder, entry: ShardEntry) -> np.ndarray:
    """The index records of all samples of a shard, of `INDEX_DTYPE`; memory-mapped where the folder is local.

    Raises:
        OSError, ValueError, EOFError: it cannot be read, or is not that of the manifest.
    """
    name = f"index/{entry.name}.npy"
    if folder.is_local:
        index = np.load(folder.path / name, mmap_mode="r")
    else:
        index = np.load(BytesIO(folder.read(name)))
    if index.dtype != INDEX_DTYPE or len(index) != entry.samples:
        raise OSError(f"{folder.url}/{name} is not the index that the manifest names")
    return index


def load_manifest(folder: Path | str | Folder, key: str) -> Manifest:
    """Reads a dataset folder's manifest.

    Args:
        folder: the dataset folder, local or behind a URL.
        key: the configuration key that named the folder, for the message.

    Raises:
        ConfigError: the folder is missing, holds no manifest, or one this version cannot read.
    """
    folder = folder if isinstance(folder, Folder) else Folder(str(folder), key)

    def refuse(rule: str, remedy: str) -> ConfigError:
        return ConfigError([Problem(key, folder.url, rule, remedy)])

    try:
        if not folder.exists():
            remedy = "run `roseate ingest`, or correct the path"
            raise refuse("the dataset folder must exist", remedy)
        data = folder.read(MANIFEST_NAME) if folder.exists(MANIFEST_NAME) else None
    except OSError as error:
        remedy = "correct the path, the credentials or the end point of the store"
        raise refuse(f"can be read ({error})", remedy) from None
    if data is None:
        raise refuse(
            f"a dataset folder holds {MANIFEST_NAME}; this one does not, so it is no dataset "
            "folder or its ingest has not finished",
            "run `roseate ingest` to the end (it resumes), `roseate index` on a folder of other "
            "WebDataset tars, or correct the path",
        )
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise refuse(
            f"{MANIFEST_NAME} must follow schema version {SCHEMA_VERSION}; "
            f"{error.error_count()} fields do not",
            "run `roseate index --again` on it, which reads the tars once",
        ) from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise refuse(
            f"this version reads schema version {SCHEMA_VERSION}, the folder has "
            f"{manifest.schema_version}",
            "run `roseate index --again` on it, which reads the tars once",
        )
    return manifest
