"""When features pay: against counting the seconds of both ways."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.features.cost import (
    FeatureCost,
    format_bytes,
    format_cost,
    format_seconds,
    measure_disk,
)

COST = FeatureCost(
    images=1_000_000,
    lacking_images=250_000,
    stored_bytes=40_000.0,
    feature_bytes=500_000,
    tower_seconds=0.002,
    disk_bytes_per_second=1e9,
    epochs=10.0,
)


def told(cost: FeatureCost) -> list[str]:
    return format_cost(cost, Path("/f"), device="cuda", precision="bf16").splitlines()


@pytest.mark.parametrize("disk", [1e8, 2.4e8, 2.6e8, 3.1e8, 4.9e8, 5.1e8, 1e9, 1e12])
def test_the_fewest_epochs_are_those_of_counting_seconds(disk):
    cost = replace(COST, disk_bytes_per_second=disk)
    tower, read = cost.tower_seconds, cost.feature_bytes / disk
    cheaper = [e for e in range(1, 1000) if tower + e * read < e * tower]
    assert cost.pays_from_epochs == (cheaper[0] if cheaper else None)


def test_all_figures_are_told():
    assert told(COST) == [
        "features: 500 kB an image, 12.5 times the 40 kB that are stored; 1,000,000 images, 500 GB in /f",
        "tower: 2.00 ms an image on cuda in bf16; 250,000 images to write, 8.3 min divided by the "
        "processes",
        "reading is as fast as the tower at 250.0 MB/s for each process that trains; here the disk "
        "gives 1,000.0",
        "pays: from 2 epochs on, and this run sees an image 10.0 times",
    ]


def test_it_says_plainly_when_it_does_not_pay():
    slow = replace(COST, disk_bytes_per_second=2e8)
    assert not slow.pays and told(slow)[-1].startswith("does not pay: reading is slower")
    once = replace(COST, epochs=1.5)
    assert not once.pays and told(once)[-1] == (
        "does not pay for this run alone: it sees an image 1.5 times, and features pay from 2 epochs "
        "on, over all runs with this tower"
    )


def test_bytes_and_seconds_are_short():
    assert [format_bytes(n) for n in (12, 1500, 6.84e12, 1e16)] == [
        *("12 bytes", "1.5 kB", "6.84 TB", "1e+04 TB")
    ]
    assert [format_seconds(s) for s in (4, 90, 36_000)] == ["4.0 s", "1.5 min", "10.0 h"]


def test_the_disk_is_measured_and_nothing_is_left(tmp_path):
    assert measure_disk(tmp_path, 500_000) > 1e5  # of a disk that others keep busy
    assert not list(tmp_path.iterdir())
