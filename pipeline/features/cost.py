"""What features of images cost on the disk, and from when on they pay: bytes and seconds, nothing else."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

PROBE_BYTES = 32_000_000


@dataclass(frozen=True)
class FeatureCost:
    """Figures of all sources together; of one process where it says so.

    Attributes:
        images: that get features.
        lacking_images: of these, not written yet.
        stored_bytes: of the dataset's tars, for each image.
        feature_bytes: of the features, for each image.
        tower_seconds: of the tower, for each image, on one process.
        disk_bytes_per_second: at which one process reads the folder.
        epochs: times that the configured run sees an image, on the mean.
    """

    images: int
    lacking_images: int
    stored_bytes: float
    feature_bytes: int
    tower_seconds: float
    disk_bytes_per_second: float
    epochs: float

    @property
    def even_bytes_per_second(self) -> float:
        """Read speed at which reading takes as long as the tower."""
        return self.feature_bytes / self.tower_seconds

    @property
    def pays_from_epochs(self) -> int | None:
        """Fewest epochs at which writing once and reading is less than the tower in every epoch.

        None: at no number. E epochs cost ``E t`` with the tower and ``t + E b / r`` with features, with t
        seconds of the tower and b bytes for each image and r bytes read in a second; nothing is counted
        as hidden behind the rest of the step.
        """
        share = self.even_bytes_per_second / self.disk_bytes_per_second
        return None if share >= 1 else math.floor(1 / (1 - share)) + 1

    @property
    def pays(self) -> bool:
        """Whether it pays within the configured run."""
        return self.pays_from_epochs is not None and self.epochs >= self.pays_from_epochs


def format_cost(cost: FeatureCost, folder: Path, *, device: str, precision: str) -> str:
    """The figures and the verdict, some lines for people."""
    times = cost.feature_bytes / max(1.0, cost.stored_bytes)
    left = format_seconds(cost.lacking_images * cost.tower_seconds)
    even, disk = cost.even_bytes_per_second / 1e6, cost.disk_bytes_per_second / 1e6
    return "\n".join(
        [
            f"features: {format_bytes(cost.feature_bytes)} an image, {times:.1f} times the "
            f"{format_bytes(cost.stored_bytes)} that are stored; {cost.images:,} images, "
            f"{format_bytes(cost.images * cost.feature_bytes)} in {folder}",
            f"tower: {1000 * cost.tower_seconds:.2f} ms an image on {device} in {precision}; "
            f"{cost.lacking_images:,} images to write, {left} divided by the processes",
            f"reading is as fast as the tower at {even:,.1f} MB/s for each process that trains; here "
            f"the disk gives {disk:,.1f}",
            _verdict(cost),
        ]
    )


def _verdict(cost: FeatureCost) -> str:
    enough = cost.pays_from_epochs
    if enough is None:
        return (
            "does not pay: reading is slower than the tower, whatever the number of epochs; put the "
            "folder on a faster disk, or leave data.features at null"
        )
    if cost.pays:
        return f"pays: from {enough} epochs on, and this run sees an image {cost.epochs:.1f} times"
    return (
        f"does not pay for this run alone: it sees an image {cost.epochs:.1f} times, and features pay "
        f"from {enough} epochs on, over all runs with this tower"
    )


def format_bytes(count: float) -> str:
    """Three digits and a unit of a thousand."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def format_seconds(seconds: float) -> str:
    """Two digits and a unit."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def measure_disk(folder: Path, read_bytes: int) -> float:
    """Bytes a second at which one process reads pieces of a folder that are not in memory.

    Args:
        folder: gets a file of `PROBE_BYTES` for a moment.
        read_bytes: of a piece.
    """
    probe = folder / f".probe.{os.getpid()}"
    count = max(1, PROBE_BYTES // read_bytes)
    try:
        with probe.open("wb") as file:
            for _ in range(count):
                file.write(os.urandom(read_bytes))
            file.flush()
            os.fsync(file.fileno())
        with probe.open("rb", buffering=0) as file:
            # Written pages go out of memory; a server's own memory is not ours to empty.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            for piece in range(count):
                # From all over the file, as training reads: 7919 is prime.
                os.pread(file.fileno(), read_bytes, piece * 7919 % count * read_bytes)
            seconds = time.perf_counter() - began
    finally:
        probe.unlink(missing_ok=True)
    return count * read_bytes / seconds
