"""Writes the features of a shard: read, decode, encode, and give the file its name when it is whole."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_prep.image.formats import DECODE_ERRORS
from pipeline.data.dataset import Dataset, UnusableSampleError
from pipeline.data.features import (
    FEATURE_DTYPE,
    SAMPLES_DTYPE,
    DatasetFeatures,
    FeatureShard,
    open_shard,
)
from pipeline.data.image import ImageFormat

# No writer needs as long between two batches: who left such a file was killed.
SECONDS_TO_ABANDON = 3600.0

Encode = Callable[[np.ndarray], np.ndarray]
Loaded = list[tuple[int, list[np.ndarray]]]


class FeatureWriter:
    """Writes shards one after another; use as a context manager.

    Letters: N images, S pixels of a side, P patches.

    Args:
        image: how images become pixels, without augmentation.
        encode: uint8 ``[N, 3, S, S]`` to float16 ``[N, P, width]``.
        shape: P, width.
        batch_size: images encoded together, at most.
        max_images: of each sample its first so many images get features.
        threads: that decode ahead.
    """

    def __init__(
        self,
        image: ImageFormat,
        encode: Encode,
        shape: tuple[int, int],
        *,
        batch_size: int,
        max_images: int,
        threads: int,
    ) -> None:
        self._image, self._encode, self._shape = image, encode, shape
        self._batch_size, self._max_images = batch_size, max_images
        self._pool, self._ahead = ThreadPoolExecutor(threads), threads + 1
        self._reading = threading.Lock()

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, features: DatasetFeatures, shard: int, advance: Callable[[int], None]) -> int:
        """Write the features of all kept samples of a shard, and keep those that are there already.

        Args:
            features: of the dataset.
            shard: number of the shard.
            advance: told how many images of the shard have been encoded so far.

        Returns:
            Samples of which an image cannot be decoded.

        Raises:
            OSError: the storage fails; no part of the file is left.
        """
        path, old = features.path(shard), _open_if_whole(features.path(shard))
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        samples = self._planned(features.dataset, shard, old)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                shape = (int(samples["rows"].sum()), *self._shape)
                header = {"descr": FEATURE_DTYPE.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.flush()
                new = FeatureShard(file.fileno(), samples, self._shape, file.tell())
                if old is not None:
                    _copy(old, new)
                self._fill(features.dataset, shard, new, old, advance)
                file.seek(new.start + shape[0] * new.row_bytes)
                np.save(file, samples)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
            if old is not None:
                os.close(old.file)
        return int((samples["whole"] < samples["rows"]).sum())

    def _planned(self, dataset: Dataset, shard: int, old: FeatureShard | None) -> np.ndarray:
        images, kept = dataset.index(shard)["num_images"], dataset.stored_slots(shard)
        samples = np.zeros(len(images), SAMPLES_DTYPE)
        samples["images"] = images
        samples["rows"][kept] = np.minimum(images[kept], self._max_images)
        if old is not None:
            samples["rows"] = np.maximum(samples["rows"], old.samples["rows"])
        samples["first"] = np.cumsum(samples["rows"], dtype=np.uint64) - samples["rows"]
        return samples

    def _fill(
        self,
        dataset: Dataset,
        shard: int,
        new: FeatureShard,
        old: FeatureShard | None,
        advance: Callable[[int], None],
    ) -> None:
        wanted = new.samples["rows"] > (0 if old is None else old.samples["rows"])
        slots, done = np.flatnonzero(wanted[dataset.stored_slots(shard)]), 0
        for loaded in self._loaded(dataset, shard, slots, new.samples["rows"]):
            rows, pixels = [], []
            for stored, decoded in loaded:
                first = int(new.samples["first"][stored])
                new.samples["whole"][stored] = len(decoded)
                rows += range(first, first + len(decoded))
                pixels += decoded
            for at in range(0, len(pixels), self._batch_size):
                part = slice(at, at + self._batch_size)
                encoded = self._encode(np.stack(pixels[part]))
                for row, values in zip(rows[part], encoded, strict=True):
                    _write_rows(new, row, values)
            done += len(pixels)
            advance(done)

    def _loaded(
        self, dataset: Dataset, shard: int, slots: np.ndarray, rows: np.ndarray
    ) -> Iterator[Loaded]:
        """Stored number and pixels of samples, some at a time; the next ones are made meanwhile."""
        coming = deque()
        for at in range(0, len(slots), self._batch_size):
            part = [int(slot) for slot in slots[at : at + self._batch_size]]
            coming.append(self._pool.submit(self._load, dataset, shard, part, rows))
            if len(coming) > self._ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def _load(self, dataset: Dataset, shard: int, slots: list[int], rows: np.ndarray) -> Loaded:
        with self._reading:  # a dataset opens files as they are asked for
            stored = [dataset.stored_slot(shard, slot) for slot in slots]
            spans = dataset.read_spans([(shard, slot) for slot in slots])
        return [
            (number, self._decode(dataset, span, int(rows[number])))
            for number, span in zip(stored, spans, strict=True)
        ]

    def _decode(self, dataset: Dataset, span: tuple[str, bytes], count: int) -> list[np.ndarray]:
        """Pixels of the first images of a sample, up to the first that cannot be decoded."""
        pixels: list[np.ndarray] = []
        try:
            for data in dataset.parse(span).images[:count]:
                pixels.append(self._image.decode(data))
        except (UnusableSampleError, *DECODE_ERRORS):
            pass
        return pixels


def _copy(old: FeatureShard, new: FeatureShard) -> None:
    """Take over the samples that have as many rows as they are to have."""
    same = (old.samples["rows"] == new.samples["rows"]) & (new.samples["rows"] > 0)
    new.samples["whole"][same] = old.samples["whole"][same]
    for stored in np.flatnonzero(same):
        sample = old.samples[stored]
        rows = old.read(int(sample["first"]), int(sample["rows"]))
        _write_rows(new, int(new.samples["first"][stored]), rows)


def _write_rows(shard: FeatureShard, row: int, values: np.ndarray) -> None:
    data, at = (
        memoryview(np.ascontiguousarray(values)).cast("B"),
        shard.start + row * shard.row_bytes,
    )
    while data:
        written = os.pwrite(shard.file, data, at)
        data, at = data[written:], at + written


def _open_if_whole(path: Path) -> FeatureShard | None:
    try:
        return open_shard(path)
    except (FileNotFoundError, ValueError):
        return None


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}.*"):
        if time.time() - left.stat().st_mtime > SECONDS_TO_ABANDON:
            left.unlink(missing_ok=True)
