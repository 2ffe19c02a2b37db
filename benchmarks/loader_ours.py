"""Our loader for the comparison: the global order, reading and collating of `pipeline.data`, without
the tokens that the peers do not make either.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.loader_data import Place, read_tar, shard_paths
from pipeline.data.config import DataConfig
from pipeline.data.dataset import Dataset
from pipeline.data.image import ImageFormat
from pipeline.data.order import Order
from pipeline.data.remote import RemoteShards

BATCH_SAMPLES, SIDE = 64, 224
Decode = Callable[[bytes], np.ndarray]
# Decodes for all loaders. Mean and deviation are CLIP's; what we decode is not normalised with them.
FORMAT = ImageFormat(
    SIDE, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
DEFAULTS = DataConfig(sources={})


@dataclass
class Batches(torch.utils.data.Dataset):
    """Position in the order -> (images, captions): what `MicroBatches` of the product is.

    Attributes:
        dataset: to read.
        order: of it.
        decode: JPEG to pixels; None to hand the bytes on.
        end: position where it ends, None for none.
    """

    dataset: Dataset
    order: Order
    decode: Decode | None
    end: int | None

    def shards(self, position: int) -> np.ndarray:
        """Those that a batch lies in."""
        return self.order.batch(position, self._size(position)).shard

    def __getitem__(self, position: int) -> tuple[Tensor | list[bytes], list[str]]:
        places = self.order.batch(position, self._size(position))
        where = list(zip(places.shard.tolist(), places.slot.tolist(), strict=True))
        samples = [self.dataset.parse(span) for span in self.dataset.read_spans(where)]
        images, texts = [s.images[0] for s in samples], [s.text for s in samples]
        return images if self.decode is None else _stack(images, self.decode), texts

    def _size(self, position: int) -> int:
        return BATCH_SAMPLES if self.end is None else min(BATCH_SAMPLES, self.end - position)


def ours(
    place: Place,
    decode: Decode | None,
    num_workers: int,
    epochs: int | None,
    read: str = "shards",
) -> Iterator:
    """Batches of (images, captions).

    Args:
        place: where the samples are.
        decode: JPEG to pixels; None to hand the bytes on.
        num_workers: processes of the loader, 0 to read in the calling process.
        epochs: passes over the samples; None to go on for ever.
        read: how shards on S3 are read, see `RemoteShards`.

    Yields:
        Images, uint8 (64, 3, 224, 224) where they are decoded, else a list of 64 JPEGs as `bytes`;
        and a list of 64 captions.
    """
    path, remote = str(place.data / "dataset"), None
    if place.endpoint is not None:
        path = f"s3://{place.bucket}/dataset"
        remote = RemoteShards(read, place.cache, DEFAULTS.remote.cache_bytes)
    dataset = Dataset(path, "benchmark", remote=remote)
    order = Order(
        0,
        {"samples": dataset.counts},
        [(0, {"samples": 1.0})],
        lanes=DEFAULTS.lanes,
        block=DEFAULTS.shuffle_block,
    )
    end = None if epochs is None else epochs * len(dataset)
    batches = Batches(dataset, order, decode, end)
    positions = count(0, BATCH_SAMPLES) if end is None else range(0, end, BATCH_SAMPLES)
    made = map(batches.__getitem__, positions)
    if num_workers:
        made = iter(
            DataLoader(
                batches,
                batch_size=None,
                sampler=positions,
                num_workers=num_workers,
                prefetch_factor=DEFAULTS.prefetch_batches,
                collate_fn=_as_it_is,
                multiprocessing_context="forkserver",
            )
        )
    ahead = DEFAULTS.remote.ahead_steps * BATCH_SAMPLES
    for position in positions if dataset.is_remote and read == "shards" else ():
        # As `TrainStream` does: at the start everything up to the horizon, then what comes into sight.
        first = position + ahead if position else 0
        for seen in range(first, position + ahead + 1, BATCH_SAMPLES):
            if end is None or seen < end:
                dataset.prepare(batches.shards(seen))
        yield next(made)
    yield from made


def ours_by_ranges(
    place: Place, decode: Decode | None, num_workers: int, epochs: int | None
) -> Iterator:
    """Ours with `data.remote.read=ranges`: S3 is asked for the samples alone, nothing is kept."""
    return ours(place, decode, num_workers, epochs, "ranges")


def decode_alone(
    place: Place, decode: Decode | None, num_workers: int, epochs: int | None
) -> Iterator:
    """A loader that costs nothing: JPEGs that lie in memory, decoded and stacked."""
    images = cycle([image for image, _ in read_tar(shard_paths(place.data)[0])])
    while True:
        yield _stack([next(images) for _ in range(BATCH_SAMPLES)], decode), [""] * BATCH_SAMPLES


def _stack(images: list[bytes], decode: Decode) -> Tensor:
    """As the product collates."""
    return torch.from_numpy(np.stack([decode(image) for image in images]))


def _as_it_is(batch: tuple) -> tuple:
    return batch
