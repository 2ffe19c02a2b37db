"""`roseate features`: the frozen tower once over every training image, into files that training reads."""

import io
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import ConfigError, Problem
from data_prep.storage import write_file
from pipeline.config import RunConfig
from pipeline.data.dataset import Dataset
from pipeline.data.feature_writer import FeatureWriter
from pipeline.data.features import FEATURE_DTYPE, DatasetFeatures
from pipeline.data.sources import open_sources
from pipeline.features.cost import FeatureCost, format_bytes, measure_disk
from pipeline.features.tower_encoder import TowerEncoder, load_encoder, time_tower
from pipeline.formats import flamingo_features
from pipeline.progress import RunProgress
from pipeline.run_check import check_features
from pipeline.share import find_share

MOST_THREADS = 16


@dataclass(frozen=True)
class FeatureJob:
    """What is to be done, and what it costs.

    Attributes:
        encoder: the tower.
        folder: of the tower's features.
        sources: name to the features of its dataset.
        cost: over all processes.
        shape: P, width.
        batch_size: images encoded together.
        max_images: of a sample.
        rank, world_size: this process among those that divide the shards.
    """

    encoder: TowerEncoder
    folder: Path
    sources: dict[str, DatasetFeatures]
    cost: FeatureCost
    shape: tuple[int, int]
    batch_size: int
    max_images: int
    rank: int
    world_size: int

    def summary(self) -> dict:
        """Figures over all processes; `lacking` counts the shards of a source as they are now."""
        cost = self.cost
        lacking = {name: len(s.lacking(self.max_images)) for name, s in self.sources.items()}
        return {
            "folder": str(self.folder),
            "images": cost.images,
            "bytes": cost.images * cost.feature_bytes,
            "lacking": lacking,
            "tower_seconds_per_image": cost.tower_seconds,
            "feature_bytes_per_image": cost.feature_bytes,
            "stored_bytes_per_image": cost.stored_bytes,
            "disk_bytes_per_second": cost.disk_bytes_per_second,
            "even_bytes_per_second": cost.even_bytes_per_second,
            "pays_from_epochs": cost.pays_from_epochs,
            "epochs": cost.epochs,
        }


def plan_features(config: RunConfig, *, batch_size: int = 64) -> FeatureJob:
    """Load the tower, time it and the disk, and find what is missing.

    Raises:
        ConfigError: there is no folder to write to or no room, a source or the tower cannot be read, or
            the run cannot use features.
    """
    problems = check_features(config)
    if config.data.features is None:
        rule = "names the folder to write to"
        problems = [Problem("data.features", None, rule, "add data.features={root}/features")]
    if problems:
        raise ConfigError(problems)
    rank, world_size, local_rank = find_share()
    datasets = open_sources(config.data)
    encoder, identity = load_encoder(config, local_rank)
    folder = flamingo_features(config, identity, encoder.image)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {name: _count(d, config.data.max_images) for name, d in datasets.items()}
    images, stored = sum(counts.values()), sum(map(_kept_bytes, datasets.values()))
    black, seconds = time_tower(encoder, max(1, min(batch_size, images)))
    sources = {name: DatasetFeatures(folder, dataset) for name, dataset in datasets.items()}
    lacking = sum(
        _count(s.dataset, config.data.max_images, s.lacking(config.data.max_images))
        for s in sources.values()
    )
    row_bytes = black.size * FEATURE_DTYPE.itemsize
    _check_room(folder, lacking * row_bytes)
    _write_once(folder / "black.npy", _npy(black))
    note = {
        "tower": config.model.vision.path,
        "identity": identity,
        "image": {k: v for k, v in asdict(encoder.image).items() if k != "config"},
        "fit": config.data.image.fit,
        "precision": encoder.precision,
        "patches_and_width": black.shape,
    }
    _write_once(folder / "tower.json", json.dumps(note, indent=1).encode())
    for name, source in sources.items():
        source.folder.mkdir(exist_ok=True)
        note = {"dataset": source.dataset.folder.url, "manifest": source.folder.name, "name": name}
        _write_once(source.folder / "dataset.json", json.dumps(note, indent=1).encode())
    cost = FeatureCost(
        images=images,
        lacking_images=lacking,
        stored_bytes=stored / max(1, images),
        feature_bytes=row_bytes,
        tower_seconds=seconds,
        disk_bytes_per_second=measure_disk(folder, row_bytes) if rank == 0 else float("inf"),
        epochs=config.train.steps * config.batch.global_size / sum(map(len, datasets.values())),
    )
    limit = config.data.max_images
    return FeatureJob(
        encoder, folder, sources, cost, black.shape, batch_size, limit, rank, world_size
    )


def write_features(job: FeatureJob) -> dict:
    """Write this process's share of what is missing; a shard is there when it is whole.

    Returns:
        `FeatureJob.summary`, and of this process shards written and samples found unusable.

    Raises:
        OSError: the storage fails; whoever runs it again goes on.
    """
    missing = {name: source.lacking(job.max_images) for name, source in job.sources.items()}
    # By number and not by what is missing: processes that begin at other times see other things missing.
    mine = [
        (source, shard)
        for name, source in job.sources.items()
        for shard in missing[name]
        if shard % job.world_size == job.rank
    ]
    total = sum(_count(source.dataset, job.max_images, [shard]) for source, shard in mine)
    threads = max(1, min(MOST_THREADS, len(os.sched_getaffinity(0))))
    writer = FeatureWriter(
        job.encoder.image,
        job.encoder,
        job.shape,
        batch_size=job.batch_size,
        max_images=job.max_images,
        threads=threads,
    )
    done = unusable = 0
    shown = RunProgress("features", total=total, done=0, silent=job.rank > 0, unit="image")
    with writer, shown:
        for source, shard in mine:
            before = done

            def advance(images: int, before: int = before) -> None:
                shown.step(min(before + images, total - 1))

            unusable += writer.write(source, shard, advance)
            done = before + _count(source.dataset, job.max_images, [shard])
            shown.step(done)
    return job.summary() | {"written": len(mine), "unusable_samples": unusable}


def _count(dataset: Dataset, max_images: int, shards: list[int] | None = None) -> int:
    """Images that get features in some shards, or in all."""
    total = 0
    for shard in np.flatnonzero(dataset.counts) if shards is None else shards:
        images = dataset.index(int(shard))["num_images"][dataset.stored_slots(int(shard))]
        total += int(np.minimum(images, max_images).sum(dtype=np.int64))
    return total


def _kept_bytes(dataset: Dataset) -> float:
    """Of the tars, the share of the samples that are kept."""
    manifest = dataset.manifest
    return sum(s.bytes for s in manifest.shards) * len(dataset) / max(1, manifest.samples)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        rule = f"has room for {format_bytes(needed)} of features; {format_bytes(free)} are free"
        remedy = "name a folder on a larger disk, or leave it at null"
        raise ConfigError([Problem("data.features", str(folder.parent), rule, remedy)])


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _write_once(path: Path, data: bytes) -> None:
    if not path.is_file():
        write_file(path, data)
