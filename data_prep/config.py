"""The `ingest` section of a run: which tables, what is fetched, what is stored."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from data_prep.schema import SCHEMA_VERSION, canonical_hash

# A source's name is also its folder's name.
SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

USER_AGENT = "roseate/0.1 (image-text dataset builder)"


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class SourceConfig(_Section):
    """One URL table, which becomes one dataset folder."""

    table: str = Field(description="path of a .parquet, .tsv, .csv or .jsonl file, or a folder")
    schema_name: Literal["auto", "laion", "cc12m", "cc3m", "generic"] = Field(
        "auto",
        alias="schema",
        description="layout of the table; auto decides by the file name extension and the columns",
    )
    url_column: str | None = Field(None, description="column of the URLs; null: by the schema")
    caption_column: str | None = Field(
        None, description="column of the captions; null: by the schema"
    )


class ImageConfig(_Section):
    """How an image is stored."""

    size: int = Field(256, ge=8, le=8192, description="side of the stored image, pixels")
    mode: Literal["keep_ratio", "center_crop", "border"] = Field(
        "keep_ratio",
        description="keep_ratio: the longer side is shrunk to at most `size`, never enlarged; "
        "center_crop: the middle, size x size; border: padded with white to size x size",
    )
    format: Literal["jpg", "png", "webp"] = Field("jpg", description="encoding of stored images")
    quality: int = Field(95, ge=1, le=100, description="encoder quality for jpg and webp, 1-100")


class FilterConfig(_Section):
    """Which images are kept."""

    min_side_pixels: int = Field(
        0, ge=0, description="shorter side of the original must have at least this many pixels"
    )
    max_aspect_ratio: float = Field(
        20.0, ge=1, allow_inf_nan=False, description="longer side over shorter side, at most"
    )
    max_pixels: int = Field(
        89_478_485,
        ge=1,
        description="width x height, at most; read from the header before anything is decoded",
    )


class FetchConfig(_Section):
    """How the web is treated, and how it is kept from harming us."""

    concurrency: int = Field(64, ge=1, description="requests in flight per shard")
    timeout_seconds: float = Field(
        20.0, gt=0, allow_inf_nan=False, description="limit of one whole request, seconds"
    )
    max_bytes: int = Field(50_000_000, ge=1, description="limit of one body, bytes")
    max_redirects: int = Field(5, ge=0, description="redirects followed, each one checked anew")
    retries: int = Field(
        1, ge=0, description="further tries after a transient failure (timeout, 429, 5xx, reset)"
    )
    user_agent: str = Field(USER_AGENT, min_length=1, description="User-Agent header, honest")
    allow_private_hosts: list[str] = Field(
        default_factory=list,
        description="host names or addresses that may be private or loopback, e.g. 127.0.0.1",
    )


class RayConfig(_Section):
    """Where the shard tasks run."""

    address: str | None = Field(
        None, description="address of a Ray cluster; null starts a local one for this ingest"
    )
    num_workers: int | None = Field(
        None, ge=1, description="shard tasks in flight, at most; null: the CPUs of the cluster"
    )


class IngestConfig(_Section):
    """URL tables to dataset folders: `{output}/{source}`."""

    output: str = Field(description="folder that receives one dataset folder per source")
    sources: dict[SourceName, SourceConfig] = Field(description="URL tables by source name")
    shard_rows: int = Field(
        1000, ge=1, description="input rows per shard: row i goes to shard i // shard_rows"
    )
    image: ImageConfig = Field(default_factory=ImageConfig, description="how images are stored")
    filter: FilterConfig = Field(default_factory=FilterConfig, description="which are kept")
    fetch: FetchConfig = Field(default_factory=FetchConfig, description="how they are fetched")
    ray: RayConfig = Field(default_factory=RayConfig, description="where the tasks run")


def policy_hash(config: IngestConfig, source: str) -> str:
    """sha256 of the settings that decide which bytes a source's shards hold.

    Settings that only decide speed or patience (concurrency, timeouts, workers, user agent) are
    left out, so that they may differ between an interrupted ingest and its resumption.
    """
    table = config.sources[source]
    return canonical_hash(
        {
            "schema_version": SCHEMA_VERSION,
            "shard_rows": config.shard_rows,
            "schema": table.schema_name,
            "url_column": table.url_column,
            "caption_column": table.caption_column,
            "image": config.image.model_dump(mode="json"),
            "filter": config.filter.model_dump(mode="json"),
            "max_bytes": config.fetch.max_bytes,
            "max_redirects": config.fetch.max_redirects,
        }
    )
