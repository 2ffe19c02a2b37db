"""Places of the order to samples: read together, decode, and replace what cannot be used."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_prep.errors import DataBudgetError
from data_prep.image.formats import DECODE_ERRORS
from pipeline.data.batch import Replacement, Sample
from pipeline.data.dataset import Dataset, RawSample, UnusableSampleError
from pipeline.data.features import FeatureCache
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
        features: read in place of pixels; None decodes.
    """

    datasets: list[Dataset]
    order: Order
    text: TextFormat
    image: ImageFormat | None
    seed: int
    most_in_a_row: int
    features: FeatureCache | None = None

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
            try:
                if isinstance(found, UnusableSampleError):
                    raise found
                samples.append(self._sample(found, next(encoded), places, i))
            except UnusableSampleError as error:
                sample, more = self._successor(places[i : i + 1], error)
                samples.append(sample)
                replaced += more
        return samples, replaced

    def _sample(self, raw: RawSample, encoded: Encoded, places: Places, i: int) -> Sample:
        cached, position = None, int(places.position[i])
        if self.features is not None:
            source, shard, slot = (
                int(numbers[i]) for numbers in (places.source, places.shard, places.slot)
            )
            read = self.features.sources[source].read
            cached = partial(read, shard, slot, key=raw.key)
        return decode_sample(raw, encoded, self.image, position, self.seed, cached=cached)

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
            successor = self.order.successor(place, attempt)
            (found,) = self._raw(successor)
            try:
                if isinstance(found, UnusableSampleError):
                    raise found
                (encoded,) = self.text.encode([found.parts])
                return self._sample(found, encoded, successor, 0), replaced
            except UnusableSampleError as another:
                error = another
        keys = ", ".join(r.key for r in replaced[:3])
        raise DataBudgetError(
            f"{self.most_in_a_row} samples in a row cannot be used, at position {position}: {keys}, ...; "
            f"the last because: {error.reason}. Mend the shard, leave it out by a bitmap, or raise "
            "data.budget.in_a_row"
        )


def decode_sample(
    raw: RawSample,
    encoded: Encoded,
    image: ImageFormat | None,
    position: int,
    seed: int | None,
    *,
    cached: Callable[[int], list[np.ndarray]] | None = None,
) -> Sample:
    """Decode the images that have a token, augmented by seed and position.

    Args:
        raw: as stored.
        encoded: its tokens.
        image: how images become pixels; None leaves them out.
        position: in the global order.
        seed: of the augmentation; None for none.
        cached: gives the features of the first so many images, in place of decoding them.

    Raises:
        UnusableSampleError: an image cannot be decoded, or there is nothing to learn.
    """
    if encoded.num_targets == 0:
        raise UnusableSampleError(raw.key, "no token is a target", counted=False)
    if image is not None and not raw.images:
        raise UnusableSampleError(raw.key, "no image to compare the text with", counted=False)
    pixels = []
    # Where the text stands alone there is no image token; its images are still decoded, for objectives
    # that compare them.
    wanted = 0 if image is None else encoded.num_images or 1
    if cached is not None:
        features = cached(min(wanted, len(raw.images)))
        return Sample(raw.key, raw.text, encoded, [], position, features)
    for number, data in enumerate(raw.images[:wanted]):
        draw = None if seed is None else Draw(seed, position, number)
        try:
            pixels.append(image.decode(data, draw))
        except DECODE_ERRORS as error:
            raise UnusableSampleError(
                raw.key, f"image {number} cannot be decoded: {error}"
            ) from None
    return Sample(raw.key, raw.text, encoded, pixels, position)
