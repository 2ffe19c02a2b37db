"""The layouts of the tables that are around, and which of their columns mean what.

Columns are compared whatever their case, so that LAION's `URL` and DataComp's `url` are one name here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Further columns that are worth a place in the ledger, whatever layout has them.
_SIZES = ("width", "height")
_SAFETY = ("punsafe", "pwatermark", "aesthetic", "language", "hash", "md5", "sha256")
_LAION = ("sample_id", "license", "nsfw", "similarity", *_SIZES)


@dataclass(frozen=True)
class Layout:
    """How one family of tables names things; all names are in lower case.

    Attributes:
        url: names of the column of addresses, the first that is there counts.
        caption: likewise, of the captions.
        keep: columns that go into the ledger where they are there.
        signature: columns by which `auto` knows the layout; empty for one known otherwise.
        headerless: the columns of a line, where the file does not name them.
    """

    url: tuple[str, ...] = ("url",)
    caption: tuple[str, ...] = ("text",)
    keep: tuple[str, ...] = ()
    signature: tuple[str, ...] = ()
    headerless: tuple[str, ...] = ()


_KNOWN = {
    "datacomp": Layout(
        keep=(
            *("uid", "original_width", "original_height", "clip_b32_similarity_score"),
            *("clip_l14_similarity_score", "face_bboxes", "sha256"),
        ),
        signature=("uid", "url", "text"),
    ),
    "coyo": Layout(
        keep=(
            *("id", *_SIZES, "image_phash", "text_length", "word_count", "num_tokens_bert"),
            *("num_tokens_gpt", "num_faces", "clip_similarity_vitb32", "clip_similarity_vitl14"),
            *("nsfw_score_opennsfw2", "nsfw_score_gantman", "watermark_score"),
            "aesthetic_score_laion_v2",
        ),
        signature=("url", "text", "image_phash"),
    ),
    # Its TEXT is the alt text of the web, kept beside the caption that was made for the picture.
    "laion_coco": Layout(
        caption=("top_caption",),
        keep=(*_LAION, *_SAFETY, "text", "top_caption"),
        signature=("url", "top_caption", "all_captions"),
    ),
    "relaion": Layout(keep=(*_LAION, *_SAFETY), signature=("url", "text", "punsafe", "pwatermark")),
    # The same columns in another order; `auto` calls both by the first name.
    "laion2b": Layout(
        keep=(*_LAION, "language"), signature=("sample_id", "url", "text", "similarity")
    ),
    "laion400m": Layout(keep=_LAION),
    "cc12m": Layout(caption=("caption",), headerless=("url", "caption")),
    "cc3m": Layout(caption=("caption",), headerless=("caption", "url")),
}
GENERIC = Layout(
    url=("url", "image_url", "img_url"),
    caption=("text", "caption", "top_caption", "alt_text", "alt", "description"),
    keep=tuple(dict.fromkeys(name for layout in _KNOWN.values() for name in layout.keep)),
)
LAYOUTS = {**_KNOWN, "generic": GENERIC}


def recognise(names: Sequence[str]) -> str:
    """The layout of a table with these columns; `generic` where they are those of none."""
    present = {name.lower() for name in names}
    for name, layout in LAYOUTS.items():
        if layout.signature and present.issuperset(layout.signature):
            return name
    return "generic"
