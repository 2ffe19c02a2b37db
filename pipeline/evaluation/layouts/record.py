"""What every layout's files become: records, and an account of what was found."""

from dataclasses import dataclass, field
from typing import Protocol

from data_prep.storage import Folder
from pipeline.data.dataset import Dataset


class ImageSource(Protocol):
    """An encoded image that is read when it is needed.

    Attributes:
        name: of its file below the folder of images, or of its sample; for messages and pages.
    """

    name: str

    def open(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class FileImage:
    """An image in a file of its own, on a disk or in an object store."""

    folder: Folder
    name: str

    def open(self) -> bytes:
        """The file's bytes.

        Raises:
            OSError: it cannot be read.
        """
        return self.folder.read(self.name)


@dataclass(frozen=True)
class StoredImage:
    """The image of a pair in a dataset folder."""

    dataset: Dataset
    number: int
    name: str

    def open(self) -> bytes:
        """The bytes as stored.

        Raises:
            OSError: the storage fails.
        """
        # It has one: read_pairs saw it.
        return self.dataset.read(self.number).images[0]


@dataclass(frozen=True)
class Record:
    """One thing to ask a model, and what would be right.

    Attributes:
        key: unique among the records: a question's number, or an image's number, file name or key.
        image: opened when it is needed.
        texts: at least one: an image's captions; a question's answers, of VQAv2 ten; the name of its class.
        question: what is asked about the image, or None.
        label: number of its class in `Records.class_names`, or None.
        kind: of question or answer, by which figures are also given apart (VQAv2: yes/no, number,
            other), or None.
        image_key: the same for all records of one image; intervals resample images, not questions.
    """

    key: str
    image: ImageSource
    texts: tuple[str, ...]
    question: str | None = None
    label: int | None = None
    kind: str | None = None
    image_key: str = ""

    def __post_init__(self) -> None:
        if not self.image_key:
            object.__setattr__(self, "image_key", self.key)


@dataclass(frozen=True)
class Records:
    """What `read_records` found.

    Attributes:
        layout: by whose rules the files were read.
        items: the records to evaluate, in the order of the files.
        counts: how the files' entries became records: ``found`` in the files, ``in_split`` of those
            that were asked for, ``limited`` (left out by `limit`), ``missing_images`` that are not
            there and ``without_image`` the records they cost, ``kept``; and what a layout leaves out
            (``without_captions``, ``other_annotations``, ``not_images``, ``documents``, ``unusable``).
        missing: names of the images that are not there, or samples with the reason why they cannot be
            used; the first 20.
        class_names: by label; empty where the layout has no classes.
        fingerprint: of all records but for the images' pixels, 16 hexadecimal digits: equal ones mean
            equal questions and references, wherever the files lie.
    """

    layout: str
    items: list[Record]
    counts: dict[str, int]
    missing: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.items)
