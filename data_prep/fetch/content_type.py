"""Which media types may be an image; servers name them in many wrong ways, so the decoder decides."""

from data_prep.fetch.failures import FetchError
from data_prep.schema import Status

_NEVER = frozenset({"text", "audio", "video", "font", "multipart", "message", "model"})
# Of application/..., what servers say when they do not know, or want it saved.
_UNKNOWN = frozenset(
    {"octet-stream", "x-octet-stream", "force-download", "download", "x-download", "unknown"}
)


def may_be_image(media_type: str) -> bool:
    """Whether a body of this type is worth its bytes.

    Args:
        media_type: in lower case, without parameters; application/octet-stream where none is named.
    """
    kind, _, subtype = media_type.partition("/")
    if kind == "application":
        return subtype in _UNKNOWN
    return kind not in _NEVER


def check_content_type(header: str | None) -> None:
    """Judges a Content-Type header; None where there is none.

    Raises:
        FetchError: with wrong_content_type.
    """
    media_type = (header or "application/octet-stream").partition(";")[0].strip().lower()
    if not may_be_image(media_type):
        raise FetchError(Status.WRONG_CONTENT_TYPE, f"{media_type[:80]} is not an image")
