"""What became of one row, on its way from an engine to the shard."""

from dataclasses import dataclass

from data_prep.schema import Status


@dataclass
class Outcome:
    """How one input row ended; `data`, `format` and the stored size are set when `status` is ok.

    Sizes are in pixels; the original size is as displayed, or as the header has it for an image
    refused by its size.
    """

    status: Status
    error: str = ""
    transient: bool = False  # a later pass may find it better
    data: bytes = b""
    format: str = ""  # extension of the member: jpg, png or webp
    final_url: str | None = None
    http_status: int | None = None
    fetched_bytes: int | None = None
    sha256_fetched: str | None = None
    original_width: int | None = None
    original_height: int | None = None
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
