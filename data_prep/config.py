"""The `ingest` section of a run: which tables, what is fetched, what is stored."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from data_prep.fetch.addresses import AllowedHosts, check_nameservers
from data_prep.schema import SCHEMA_VERSION

# A source's name is also its folder's name.
SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

LayoutName = Literal[
    "auto",
    "laion400m",
    "laion2b",
    "relaion",
    "laion_coco",
    "cc3m",
    "cc12m",
    "datacomp",
    "coyo",
    "generic",
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(_Section):
    """One URL table, which becomes one dataset folder."""

    table: str = Field(
        description="path or URL (s3://, gs://) of a .parquet, .tsv, .csv, .jsonl or .txt file, or of a "
        "folder of such"
    )
    layout: LayoutName = Field(
        "auto", description="layout of the table; auto recognises it by its columns"
    )
    url_column: str | None = Field(None, description="column of the URLs; null: by the layout")
    caption_column: str | None = Field(
        None, description="column of the captions; null: by the layout"
    )
    keep_columns: list[str] | None = Field(
        None,
        description="further columns that go into the ledger; null: those that the layout knows",
    )
    verify: Literal["none", "sha256", "md5", "phash"] = Field(
        "none",
        description="compare each image with a column of the table: sha256 or md5 of the file, "
        "or its perceptual hash, which re-encoded copies pass",
    )
    verify_column: str | None = Field(
        None, description="column of the expected hashes; null: the one named like `verify`"
    )
    verify_max_distance: int = Field(
        10,
        ge=0,
        le=63,
        description="of 64 clear bits of a phash so many may differ, of fewer as much less",
    )


class ImageConfig(_Section):
    """How an image is stored."""

    size: int = Field(256, ge=8, le=8192, description="side of the stored image, pixels")
    mode: Literal["keep_ratio", "center_crop", "border", "untouched"] = Field(
        "keep_ratio",
        description="keep_ratio: the longer side is shrunk to at most `size`, never enlarged; "
        "center_crop: the middle, size x size; border: padded with white to size x size; untouched: "
        "the file as fetched, decoded only to see that it is whole",
    )
    format: Literal["jpg", "png", "webp"] = Field("jpg", description="encoding of stored images")
    quality: int = Field(95, ge=1, le=100, description="encoder quality for jpg and webp, 1-100")
    skip_reencode: bool = Field(
        False, description="store a file as fetched where neither its size nor format would change"
    )


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


class DecodeConfig(_Section):
    """Images are decoded in processes of their own, so that a bad one costs one row."""

    processes: int = Field(1, ge=1, le=64, description="decoding processes of one shard task")
    memory_bytes: int = Field(
        700_000_000, ge=100_000_000, description="memory one of them may take, bytes"
    )
    timeout_seconds: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="limit of one image, seconds"
    )


class DownloadConfig(_Section):
    """How the web is treated, and how it is kept from harming us."""

    engine: Literal["roseate", "img2dataset"] = Field(
        "roseate",
        description="what fetches and encodes; docs/ingest.md says what img2dataset lacks",
    )
    concurrency: int = Field(64, ge=1, description="requests in flight per shard task")
    per_host: int = Field(
        16, ge=1, description="requests in flight per host and shard task, at most"
    )
    timeout_seconds: float = Field(
        20.0, gt=0, allow_inf_nan=False, description="limit of one whole request, seconds"
    )
    idle_seconds: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="longest silence of a server, seconds"
    )
    max_bytes: int = Field(
        50_000_000, ge=1, description="limit of one body, bytes, also after decompression"
    )
    max_redirects: int = Field(5, ge=0, description="redirects followed, each one checked anew")
    retries: int = Field(
        1,
        ge=0,
        description="further tries at once after a transient failure (timeout, 429, 5xx, reset)",
    )
    passes: int = Field(
        3, ge=1, description="passes over a shard; later ones over its transient failures alone"
    )
    pass_wait_seconds: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="wait before the second pass over a shard, seconds; doubled for each further one",
    )
    robots: Literal["obey", "ignore"] = Field("obey", description="robots.txt (RFC 9309)")
    opt_out_directives: list[str] = Field(
        default_factory=lambda: [
            *("noai", "noimageai", "noindex", "noimageindex", "noml", "none"),
        ],
        description="directives of X-Robots-Tag that keep an image out; [] to ignore the header",
    )
    user_agent: str = Field(
        "roseate",
        pattern=r"^[A-Za-z_-]+$",
        description="product token that we are known by, in User-Agent and for robots rules",
    )
    contact: str | None = Field(
        None,
        pattern=r"^[\x21-\x7e]+$",
        description="address or page where whoever runs a server can reach you, in User-Agent",
    )
    nameservers: list[str] = Field(
        default_factory=list, description="DNS servers, address or address:port; []: the system's"
    )
    allow_private_hosts: list[str] = Field(
        default_factory=list,
        description="host names, addresses or networks that may be private or loopback, e.g. 127.0.0.1",
    )

    @field_validator("nameservers")
    @classmethod
    def _nameservers(cls, value: list[str]) -> list[str]:
        check_nameservers(value)
        return value

    @field_validator("allow_private_hosts")
    @classmethod
    def _allowed(cls, value: list[str]) -> list[str]:
        AllowedHosts(value)
        return value


class RayConfig(_Section):
    """Where the shard tasks run."""

    address: str | None = Field(
        None, description="address of a Ray cluster; null starts a local one for this ingest"
    )
    num_workers: int | None = Field(
        None, ge=1, description="shard tasks in flight, at most; null: the CPUs of the cluster"
    )
    max_failures: int = Field(
        3, ge=1, description="a shard whose worker died so often ends as internal_error"
    )


class IngestConfig(_Section):
    """URL tables to dataset folders: `{output}/{source}`."""

    output: str = Field(
        description="folder, or URL (s3://...), that receives one dataset folder per source"
    )
    sources: dict[SourceName, SourceConfig] = Field(description="URL tables by source name")
    shard_rows: int = Field(
        1000, ge=1, description="input rows per shard; the last one of a file may have fewer"
    )
    image: ImageConfig = Field(default_factory=ImageConfig, description="how images are stored")
    filter: FilterConfig = Field(default_factory=FilterConfig, description="which are kept")
    decode: DecodeConfig = Field(default_factory=DecodeConfig, description="how they are decoded")
    download: DownloadConfig = Field(
        default_factory=DownloadConfig, description="how they are fetched"
    )
    ray: RayConfig = Field(default_factory=RayConfig, description="where the tasks run")


def policy(config: IngestConfig, source: str) -> dict:
    """The settings that decide which bytes a source's shards hold, nested as in the configuration.

    Settings that only decide speed or patience (concurrency, timeouts, workers, user agent) are
    left out, so that they may differ between an interrupted ingest and its resumption.
    """
    download = {"engine", "max_bytes", "max_redirects", "robots", "opt_out_directives"}
    return {
        "schema_version": SCHEMA_VERSION,
        "shard_rows": config.shard_rows,
        "source": config.sources[source].model_dump(mode="json", exclude={"table"}),
        "image": config.image.model_dump(mode="json"),
        "filter": config.filter.model_dump(mode="json"),
        "download": config.download.model_dump(mode="json", include=download),
    }


def flatten_dict(nested: dict, prefix: str = "") -> dict[str, object]:
    """Dotted name -> value of every leaf."""
    flat: dict[str, object] = {}
    for key, item in nested.items():
        if isinstance(item, dict):
            flat |= flatten_dict(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
