"""Places of the order to samples: read together, decode, and replace what cannot be used."""

from dataclasses import dataclass

import numpy as np

from data_prep.errors import DataBudgetError
from data_prep.image import DECODE_ERRORS
from pipeline.data.batch import Replacement, Sample
from pipeline.data.dataset import Dataset, RawSample, UnusableSampleError
from pipeline.data.image import Draw, ImageFormat
from pipeline.data.order import Order, Places
from pipeline.data.text import Encoded, TextFormat


@dataclass(frozen=True)
class SampleReader:
    """Makes the samples of places, the same ones whoever asks.

    Attributes:
        datasets: in the order of the sources of `order`.
        order: that the places are of.
        text: how texts become tokens.
        image: how images become pixels; None leaves them out.
        seed: of the augmentation.
        most_in_a_row: samples that stand in for one another, at most.
    """

    datasets: list[Dataset]
    order: Order
    text: TextFormat
    image: ImageFormat | None
    seed: int
    most_in_a_row: int

    def read(self, places: Places) -> tuple[list[Sample], list[Replacement]]:
        """The sample of each place, and what was replaced on the way.

        A sample that cannot be used is replaced by the next one of its lane; which one that is depends
        on what is stored alone.

        Raises:
            DataBudgetError: too many in a row cannot be used: a whole shard is broken.
            OSError: the storage fails.
        """
        raw = self._raw(places)
        usable = [r for r in raw if isinstance(r, RawSample)]
        encoded = iter(self.text.encode([r.parts for r in usable]))
        samples, replaced = [], []
        for i, found in enumerate(raw):
            position = int(places.position[i])
            try:
                if isinstance(found, UnusableSampleError):
                    raise found
                samples.append(decode_sample(found, next(encoded), self.image, position, self.seed))
            except UnusableSampleError as error:
                sample, more = self._successor(places[i : i + 1], error)
                samples.append(sample)
                replaced += more
        return samples, replaced

    def _raw(self, places: Places) -> list[RawSample | UnusableSampleError]:
        raw: list[RawSample | UnusableSampleError | None] = [None] * len(places)
        for source in np.unique(places.source):
            dataset, here = self.datasets[source], np.flatnonzero(places.source == source)
            where = [(int(places.shard[i]), int(places.slot[i])) for i in here]
            for i, span in zip(here, dataset.read_spans(where), strict=True):
                try:
                    raw[i] = dataset.parse(span)
                except UnusableSampleError as error:
                    raw[i] = error
        return raw

    def _successor(
        self, place: Places, error: UnusableSampleError
    ) -> tuple[Sample, list[Replacement]]:
        position, replaced = int(place.position[0]), []
        for attempt in range(1, self.most_in_a_row + 1):
            replaced.append(Replacement(position, error.key, error.reason, error.counted))
            (found,) = self._raw(self.order.successor(place, attempt))
            try:
                if isinstance(found, UnusableSampleError):
                    raise found
                (encoded,) = self.text.encode([found.parts])
                sample = decode_sample(found, encoded, self.image, position, self.seed)
                return sample, replaced
            except UnusableSampleError as another:
                error = another
        keys = ", ".join(r.key for r in replaced[:3])
        raise DataBudgetError(
            f"{self.most_in_a_row} samples in a row cannot be used, at position {position}: {keys}, ...; "
            f"the last because: {error.reason}. Mend the shard, leave it out by a bitmap, or raise "
            "data.budget.in_a_row"
        )


def decode_sample(
    raw: RawSample, encoded: Encoded, image: ImageFormat | None, position: int, seed: int | None
) -> Sample:
    """Decode the images that have a token, augmented by seed and position.

    Args:
        raw: as stored.
        encoded: its tokens.
        image: how images become pixels; None leaves them out.
        position: in the global order.
        seed: of the augmentation; None for none.

    Raises:
        UnusableSampleError: an image cannot be decoded, or there is nothing to learn.
    """
    if encoded.num_targets == 0:
        raise UnusableSampleError(raw.key, "no token is a target", counted=False)
    pixels = []
    # Where the text stands alone there is no image token; its images are still decoded, for objectives
    # that compare them.
    wanted = 0 if image is None else encoded.num_images or 1
    for number, data in enumerate(raw.images[:wanted]):
        draw = None if seed is None else Draw(seed, position, number)
        try:
            pixels.append(image.decode(data, draw))
        except DECODE_ERRORS as error:
            raise UnusableSampleError(
                raw.key, f"image {number} cannot be decoded: {error}"
            ) from None
    return Sample(raw.key, raw.text, encoded, pixels, position)
