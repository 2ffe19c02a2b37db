"""Whether a fetched file is the one that the table means, by a hash of the file or of what it shows."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from data_prep.config import FilterConfig, ImageConfig, SourceConfig
from data_prep.hashes import parse_hash
from data_prep.image.encode import EncodedImage, encode_image
from data_prep.schema import Status


@dataclass(frozen=True)
class Verification:
    """What the expected hashes are, and in how many bits a phash may differ."""

    kind: Literal["none", "sha256", "md5", "phash"] = "none"
    max_distance: int = 10

    @classmethod
    def of(cls, source: SourceConfig) -> "Verification":
        """As the settings of a source have it."""
        return cls(source.verify, source.verify_max_distance)


def encode_verified(
    data: bytes,
    expected: str | None,
    image: ImageConfig,
    keep: FilterConfig,
    verification: Verification,
) -> EncodedImage:
    """`encode_image` for a file that is what it should be; otherwise missing_hash or hash_mismatch.

    Args:
        data: the file as fetched.
        expected: its hash by the table, hexadecimal in any case.
        image: how to store it.
        keep: which images to keep.
        verification: what kind of hash is expected.
    """
    kind = verification.kind
    if kind == "none":
        return encode_image(data, image, keep)
    wanted = parse_hash(kind, expected)
    if wanted is None:
        return EncodedImage(Status.MISSING_HASH, f"{expected!r:.100} is no {kind}")
    if kind == "phash":
        return encode_image(data, image, keep, (int(wanted, 16), verification.max_distance))
    found = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
    if found != wanted:
        return EncodedImage(Status.HASH_MISMATCH, f"{kind} is {found}, not {wanted}")
    return encode_image(data, image, keep)
