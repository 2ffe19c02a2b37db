"""What a layout's reader hands on: records whose images are not looked for yet."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Draft:
    """A record to be; attributes as of `Record`.

    Attributes:
        image_names: files below the folder of images that may be its image, the likeliest first.
    """

    key: str
    image_names: tuple[str, ...]
    texts: tuple[str, ...]
    question: str | None = None
    label: int | None = None
    kind: str | None = None
    image_key: str = ""


@dataclass(frozen=True)
class Found:
    """What is in the files of a layout.

    Attributes:
        drafts: of the records asked for, in the order of the files.
        counts: how the entries became those, see `Records.counts`.
        class_names: by label.
    """

    drafts: list[Draft]
    counts: dict[str, int]
    class_names: list[str] = field(default_factory=list)
