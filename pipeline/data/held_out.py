"""Samples never trained on, in a fixed order."""

from data_prep.errors import ConfigError, DataBudgetError, Problem
from pipeline.data.batch import Batch, Sample, collate
from pipeline.data.config import DataConfig
from pipeline.data.dataset import Dataset, UnusableSampleError
from pipeline.data.image import ImageFormat
from pipeline.data.samples import decode_sample
from pipeline.data.sources import open_sources
from pipeline.data.text import TextFormat


class HeldOut:
    """The held-out set, without augmentation and without packing.

    Args:
        config: section `data`.
        text: how texts become tokens.
        image: how images become pixels.

    Raises:
        ConfigError: the source is not a dataset folder, or nothing is held out.
    """

    def __init__(self, config: DataConfig, text: TextFormat, image: ImageFormat) -> None:
        self.text, self.image = text, image
        self.datasets = [*open_sources(config, held_out=True).values()]

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def batches(self, count: int, size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        """At most `count` samples in batches of `size`; the same number of batches on every rank.

        The last samples are left out where they do not fill a batch on every rank, and so is every
        sample that cannot be used.

        Raises:
            ConfigError: there are fewer samples than ranks.
            DataBudgetError: no sample of a batch can be used.
        """
        count = min(count, len(self))
        if count < world_size:
            rule = f"gives every one of {world_size} ranks a sample"
            remedy = "hold more out, or raise train.validate_samples"
            raise ConfigError([Problem("held-out samples", count, rule, remedy)])
        size = min(size, count // world_size)
        every = ((dataset, n) for dataset in self.datasets for n in range(len(dataset)))
        places = [place for place, _ in zip(every, range(count), strict=False)]
        rounds = count // (size * world_size)
        starts = [(i * world_size + rank) * size for i in range(rounds)]
        return [self._batch(places[start : start + size]) for start in starts]

    def _batch(self, places: list[tuple[Dataset, int]]) -> Batch:
        samples: list[Sample] = []
        for dataset, number in places:
            try:
                raw = dataset.read(number)
                (encoded,) = self.text.encode([raw.parts])
                samples.append(decode_sample(raw, encoded, self.image, -1, seed=None))
            except UnusableSampleError as error:
                last = error
        if not samples:
            raise DataBudgetError(
                f"none of {len(places)} held-out samples in a row can be used: {last}"
            )
        return collate(samples, self.image, pad_id=self.text.pad_id)
