"""The dataset folder in types: statuses, ledger, index and manifest.

    <folder>/shards/000000.tar  ledger/000000.parquet  index/000000.npy  manifest.json  report.html

Tars are plain WebDataset: `{key}.jpg|png|webp`, `{key}.txt`, `{key}.json` with key `f"{row:09d}"`,
in row order. The ledger has one row for every input row, the index one record per stored sample.
"""

import hashlib
import json
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.errors import ConfigError, Problem

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"


class Status(StrEnum):
    """How an input row ended. Every row of the table has exactly one."""

    OK = "ok"
    MISSING_URL = "missing_url"
    MISSING_CAPTION = "missing_caption"
    INVALID_URL = "invalid_url"
    REFUSED_SCHEME = "refused_scheme"
    REFUSED_PRIVATE_ADDRESS = "refused_private_address"
    DNS = "dns"
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    HTTP_404 = "http_404"
    HTTP_ERROR = "http_error"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_MANY_BYTES = "too_many_bytes"
    WRONG_CONTENT_TYPE = "wrong_content_type"
    TOO_MANY_PIXELS = "too_many_pixels"
    UNDECODABLE = "undecodable"
    FILTERED_SIZE = "filtered_size"
    FILTERED_ASPECT_RATIO = "filtered_aspect_ratio"
    INTERNAL_ERROR = "internal_error"


# One record per sample, in tar order; 36 bytes, packed, so a shard's index can be memory-mapped.
INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the image member's data in the tar, bytes
        ("image_bytes", "<u4"),
        ("text_offset_delta", "<u4"),  # text member's data offset minus `offset`, bytes
        ("text_bytes", "<u4"),
        ("row", "<u4"),  # row of the input table
        ("content_hash", "<u8"),  # first 8 bytes of the sha256 of the stored image
        ("width", "<u2"),  # stored pixels
        ("height", "<u2"),
    ]
)

LEDGER_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("final_url", pa.string()),
        ("http_status", pa.int32()),
        ("fetched_bytes", pa.int64()),
        ("sha256_fetched", pa.string()),
        ("sha256_stored", pa.string()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("seconds", pa.float32()),
    ]
)


class ShardEntry(BaseModel):
    """One shard as the manifest lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="stem shared by the tar, ledger and index files: 000000")
    rows: int = Field(description="input rows planned into this shard")
    samples: int = Field(description="rows that ended ok and are stored")
    bytes: int = Field(description="size of the tar in bytes")
    sha256: str = Field(description="sha256 of the tar, hexadecimal")


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

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON: the identity of the dataset."""
        return canonical_hash(self.model_dump(mode="json"))


def canonical_hash(value: object) -> str:
    """sha256 (hexadecimal) of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_manifest(folder: Path, key: str) -> Manifest:
    """Reads a dataset folder's manifest.

    Args:
        folder: the dataset folder.
        key: the configuration key that named the folder, for the message.

    Raises:
        ConfigError: the folder is missing, holds no manifest, or one this version cannot read.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME

    def refuse(rule: str, remedy: str) -> ConfigError:
        return ConfigError([Problem(key, str(folder), rule, remedy)])

    if not folder.is_dir():
        raise refuse("the dataset folder must exist", "run `roseate ingest`, or correct the path")
    if not path.is_file():
        raise refuse(
            f"a dataset folder holds {MANIFEST_NAME}; this one does not, so it is no dataset "
            "folder or its ingest has not finished",
            "run `roseate ingest` to the end (it resumes), or correct the path",
        )
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise refuse(
            f"{MANIFEST_NAME} must follow schema version {SCHEMA_VERSION}; "
            f"{error.error_count()} fields do not",
            "ingest the source again into a new folder",
        ) from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise refuse(
            f"this version reads schema version {SCHEMA_VERSION}, the folder has "
            f"{manifest.schema_version}",
            "ingest the source again into a new folder",
        )
    return manifest
