"""Features of stored images, made once by `roseate features`: a frozen tower need not run in every epoch.

    FOLDER/TOWER/tower.json              what was made, for people
    FOLDER/TOWER/black.npy               float16 [P, width], of a black image
    FOLDER/TOWER/DATASET/dataset.json    likewise
    FOLDER/TOWER/DATASET/000000.npy      float16 [images, P, width], those of one sample together; behind
                                         it in the same file an array of `SAMPLES_DTYPE`, one record for
                                         each sample of the shard

TOWER is a hash of the tower's weights and of how images come to it, DATASET one of the manifest: what
does not belong to a run is not found by it. Selections (bitmaps) are not in the name, so that features
of more samples than a run keeps serve it too. Letters: P patches.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import ConfigError, Problem
from data_prep.schema import canonical_hash
from pipeline.data.dataset import Dataset, UnusableSampleError
from pipeline.data.image import ImageFormat

VERSION = 1  # another one when `ImageFormat.decode` gives other pixels
SHARDS_KEPT = 256
FEATURE_DTYPE = np.dtype("<f2")
SAMPLES_DTYPE = np.dtype(
    [
        ("first", "<u8"),  # row of its first image
        ("images", "<u2"),  # images it has
        ("rows", "<u2"),  # rows kept for it: its first so many images
        ("whole", "<u2"),  # of these, images in front of the first that cannot be decoded
    ]
)


def tower_folder(folder: str | Path, identity: str, image: ImageFormat) -> Path:
    """Where the features of a tower are.

    Args:
        folder: setting `data.features`.
        identity: of the tower's weights, `model.identity.frozen_identity`.
        image: how images become pixels; of its augmentation nothing counts.
    """
    what = [VERSION, identity, image.size, image.config.fit, image.mean, image.std]
    return Path(folder) / canonical_hash(what)[:16]


@dataclass(frozen=True)
class FeatureShard:
    """An opened file of features.

    Attributes:
        file: descriptor.
        samples: `SAMPLES_DTYPE` ``[samples of the shard]``.
        shape: P, width.
        start: byte of row 0.
    """

    file: int
    samples: np.ndarray
    shape: tuple[int, int]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of the features of one image."""
        return math.prod(self.shape) * FEATURE_DTYPE.itemsize

    def read(self, row: int, count: int) -> np.ndarray:
        """Rows from one on, float16 ``[count, P, width]``.

        Raises:
            OSError: the storage fails.
        """
        # One read of known length; mapped memory would come page by page on a network's file system.
        data = os.pread(self.file, count * self.row_bytes, self.start + row * self.row_bytes)
        if len(data) != count * self.row_bytes:
            raise OSError(f"a file of features ends before row {row + count}")
        return np.frombuffer(data, FEATURE_DTYPE).reshape(count, *self.shape)


def open_shard(path: Path) -> FeatureShard:
    """Open a file of features.

    Raises:
        OSError: it is not there.
        ValueError: it is damaged.
    """
    with path.open("rb") as file:
        try:
            np.lib.format.read_magic(file)
            shape, _, _ = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            file.seek(start + math.prod(shape) * FEATURE_DTYPE.itemsize)
            samples = np.load(file)
            if len(shape) != 3 or samples.dtype != SAMPLES_DTYPE:
                raise ValueError("not features and samples")
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it") from None
        return FeatureShard(os.dup(file.fileno()), samples, shape[1:], start)


class DatasetFeatures:
    """The features of one dataset's images.

    Args:
        folder: of the tower.
        dataset: whose images.

    Attributes:
        folder: with the files of this dataset.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.folder = folder / dataset.manifest.fingerprint[:16]
        self.dataset = dataset
        self._shards: dict[int, FeatureShard] = {}

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{self.dataset.manifest.shards[shard].name}.npy"

    def lacking(self, max_images: int) -> list[int]:
        """Shards of which features of kept samples are missing.

        Args:
            max_images: of each sample its first so many images are wanted.
        """
        shards = map(int, np.flatnonzero(self.dataset.counts))
        return [shard for shard in shards if not self._holds(shard, max_images)]

    def _holds(self, shard: int, max_images: int) -> bool:
        try:
            found = open_shard(self.path(shard))
        except (FileNotFoundError, ValueError):
            return False
        os.close(found.file)
        if len(found.samples) != self.dataset.manifest.shards[shard].samples:
            return False
        kept = found.samples[self.dataset.stored_slots(shard)]
        return bool((kept["rows"] >= np.minimum(kept["images"], max_images)).all())

    def read(self, shard: int, slot: int, count: int, key: str) -> list[np.ndarray]:
        """Features of the first images of a kept sample, float16 ``[P, width]`` each.

        Args:
            shard: number of the shard.
            slot: number of the sample among those of the shard that are kept.
            count: images wanted; the sample has as many.
            key: of the sample, for messages.

        Raises:
            UnusableSampleError: one of the images could not be decoded.
            OSError: the storage fails.
        """
        opened = self._open(shard)
        sample = opened.samples[self.dataset.stored_slot(shard, slot)]
        if sample["whole"] < count:
            reason = f"image {int(sample['whole'])} cannot be decoded: it has no features"
            raise UnusableSampleError(key, reason)
        return [*opened.read(int(sample["first"]), count)]

    def _open(self, shard: int) -> FeatureShard:
        if shard not in self._shards:
            if len(self._shards) >= SHARDS_KEPT:
                os.close(self._shards.pop(next(iter(self._shards))).file)
            self._shards[shard] = open_shard(self.path(shard))
        return self._shards[shard]

    def __getstate__(self) -> dict:
        """Opened files stay behind when it goes to a worker process."""
        return self.__dict__ | {"_shards": {}}


@dataclass(frozen=True)
class FeatureCache:
    """The features that a run reads in place of pixels.

    Attributes:
        sources: in the order of the run's datasets.
        black: float16 ``[P, width]``, of a black image.
    """

    sources: list[DatasetFeatures]
    black: np.ndarray


def open_features(folder: Path, datasets: dict[str, Dataset], max_images: int) -> FeatureCache:
    """Open the features of all training images.

    Args:
        folder: of the tower.
        datasets: name to dataset, in the order of the run.
        max_images: images of a sample, at most.

    Raises:
        ConfigError: features of some images are missing; with every source where they are.
    """

    def refuse(rule: str) -> Problem:
        return Problem("data.features", str(folder.parent), rule, "roseate features CONFIG")

    if not (folder / "black.npy").is_file():
        others = "" if not folder.parent.is_dir() else ", which has those of others alone"
        rule = f"holds features of this tower and image format in {folder.name}/{others}"
        raise ConfigError([refuse(rule if others else f"{rule}; there is no such folder")])
    sources, problems = [], []
    for name, dataset in datasets.items():
        found = DatasetFeatures(folder, dataset)
        sources.append(found)
        lacking, shards = found.lacking(max_images), np.count_nonzero(dataset.counts)
        if lacking:
            where = f"{folder.name}/{found.folder.name}/"
            rule = f"holds features of every image of data.sources.{name} in {where}"
            problems.append(refuse(f"{rule}; {len(lacking)} of {shards} shards lack some"))
    if problems:
        raise ConfigError(problems)
    return FeatureCache(sources, np.load(folder / "black.npy"))
