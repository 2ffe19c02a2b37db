"""A dataset folder of `roseate ingest` or `roseate index`: pairs, and what is held out of them."""

from pathlib import Path

from pipeline.data.dataset import Dataset, UnusableSampleError
from pipeline.data.remote import RemoteShards
from pipeline.evaluation.config import EvaluationData
from pipeline.evaluation.layouts.record import Record, StoredImage


def open_dataset(config: EvaluationData, key: str) -> Dataset:
    """The folder, or what training with `held_out_fraction` left out of it.

    Raises:
        ConfigError: not a dataset folder, a selection that is not there, or no sample is kept.
    """
    return Dataset(
        config.path,
        key,
        bitmaps=config.bitmaps,
        held_out_fraction=config.held_out_fraction,
        held_out=config.held_out_fraction > 0,
        remote=RemoteShards("ranges", Path("."), 1),  # ranges are not kept, no cache is written
    )


def read_pairs(
    dataset: Dataset, numbers: list[int]
) -> tuple[list[Record], list[tuple[str, str]], int]:
    """Records of these samples; their texts are read at once, their images again when opened.

    Returns:
        the records; key and reason of each sample that cannot be used; how many are documents of
        several images or texts, which are no pairs.

    Raises:
        OSError: the storage fails.
    """
    records: list[Record] = []
    unusable: list[tuple[str, str]] = []
    documents = 0
    for number in numbers:
        try:
            sample = dataset.read(number)
        except UnusableSampleError as error:
            unusable.append((error.key, error.reason))
            continue
        images, texts = len(sample.images), len(sample.parts) - len(sample.images)
        if images > 1 or texts > 1:
            documents += 1
        elif not images or not sample.text.strip():
            unusable.append((sample.key, "without image" if not images else "without text"))
        else:
            image = StoredImage(dataset, number, sample.key)
            records.append(Record(sample.key, image, (sample.text.strip(),)))
    return records, unusable, documents
