"""A batch with features is the batch with pixels, seen through the tower; what is missing is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.bitmap import write_bitmap
from data_prep.errors import ConfigError
from data_prep.schema import load_manifest
from data_prep.storage import Folder
from pipeline.batch_plan import BatchPlan
from pipeline.data.batch import Batch
from pipeline.data.config import DataConfig, ImageInputConfig
from pipeline.data.features import DatasetFeatures, open_features, tower_folder
from pipeline.data.loader import TrainStream
from pipeline.data.sources import open_sources
from tests.helpers.dataset import write_dataset
from tests.unit.pipeline.data.conftest import interleaved, pair
from tests.unit.pipeline.data.test_feature_writer import SHAPE, encode, write_all

PLAN = BatchPlan(12, 6, 2)
CPU = torch.device("cpu")


def damaged_pair(number: int) -> dict[str, bytes]:
    return pair(number) | ({"jpg": b"no image"} if number % 17 == 5 else {})


def damaged_document(number: int) -> dict[str, bytes]:
    return interleaved(number) | ({"3.jpg": b"no image"} if number % 5 == 1 else {})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Pairs and documents with broken images, a selection of the documents, and features of them all."""
    root = tmp_path_factory.mktemp("features")
    write_dataset(root / "pairs", [13, 1, 40], damaged_pair)
    write_dataset(root / "docs", [9, 11], damaged_document)
    kept = [np.arange(9) % 3 != 0, np.arange(11) % 2 == 0]
    write_bitmap(
        Folder(str(root / "docs"), "k"), load_manifest(root / "docs", "k"), "some", kept, "the test"
    )
    tower = root / "features" / "tower"
    for dataset in open_sources(settings(root)).values():
        write_all(DatasetFeatures(tower, dataset), 3)
    np.save(tower / "black.npy", np.full(SHAPE, 0.5, np.float16))
    return root


def settings(root: Path, **other) -> DataConfig:
    sources = {
        "pairs": {"path": str(root / "pairs")},
        "docs": {"path": str(root / "docs"), "weight": 0.7, "bitmaps": ["some"]},
    }
    small = {"lanes": 8, "shuffle_block": 6, "max_text_tokens": 24, "max_images": 3}
    return DataConfig(sources=sources, budget={"percent": 50}, **small | other)


@pytest.fixture
def streams(root, text_format, image_format):
    """With pixels, and with features."""

    def make(**other) -> tuple[TrainStream, TrainStream]:
        config, tower = settings(root, **other), root / "features" / "tower"
        return tuple(
            TrainStream(config, 3, text_format, image_format, features=folder)
            for folder in (None, tower)
        )

    return make


def check_same(pixels: Batch, features: Batch) -> None:
    """All but the images is the same, and these are what the tower makes of the pixels."""
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(getattr(pixels, name), getattr(features, name))
    assert torch.equal(pixels.media.slots, features.media.slots)
    assert pixels.positions == features.positions and pixels.keys == features.keys
    shown, cached = pixels.media.inputs["image"], features.media.inputs["image"]
    assert cached.data is None and cached.features.dtype == torch.float16
    assert (encode(shown.data[:, 0].numpy()) == cached.features[:, 0].numpy()).all()


@pytest.mark.parametrize("pack_tokens", [None, 48])
def test_a_batch_is_the_one_with_pixels_through_the_tower(streams, pack_tokens):
    pixels, features = streams(pack_tokens=pack_tokens)
    replaced = 0
    for position in range(0, 20 * 12, 12):
        for rank in range(2):
            one, two = (s.micro_batch(PLAN, position, rank, 0) for s in (pixels, features))
            check_same(one, two)
            for a, b in zip(one.replaced, two.replaced, strict=True):
                assert (a.position, a.key, a.counted) == (b.position, b.key, b.counted)
                if a.counted:
                    assert b.reason.endswith("cannot be decoded: it has no features")
                    replaced += 1
    assert replaced > 5


def test_workers_give_the_same_batches(streams):
    pixels, features = streams(pack_tokens=48, workers=1)
    features.micro_batch(PLAN, 0, 0, 0)  # opened files stay behind
    for step, (batch,) in enumerate(features.steps(PLAN, 1, 24, 2)):
        check_same(pixels.micro_batch(PLAN, 24 + 12 * step, 1, 0), batch)


def test_images_without_a_token_are_not_read(streams, monkeypatch):
    pixels, features = streams(max_text_tokens=8)
    asked = []
    read = DatasetFeatures.read

    def told(self, shard, slot, count, key):
        asked.append(count)
        return read(self, shard, slot, count, key)

    monkeypatch.setattr(DatasetFeatures, "read", told)
    batch = features.micro_batch(BatchPlan(24, 24, 1), 0, 0, 0)
    check_same(pixels.micro_batch(BatchPlan(24, 24, 1), 0, 0, 0), batch)
    image = features.reader.text.token_ids.media["image"]
    assert len(batch.media.inputs["image"].features) == int((batch.input_ids == image).sum())
    assert max(asked) < 3, "documents have three images, and their texts are cut before the third"


def test_features_move_and_the_control_is_the_black_image(streams):
    _, features = streams()
    batch = features.micro_batch(PLAN, 0, 0, 0)
    moved = batch.to(CPU, torch.bfloat16)
    assert moved.media.inputs["image"].features.dtype == torch.bfloat16
    count = len(batch.media.inputs["image"].features)
    for black in (batch.zero_images(), batch.to(CPU, torch.float32).zero_images()):
        shown = black.media.inputs["image"].features
        assert shown.shape == (count, 1, *SHAPE) and (shown == 0.5).all()
        assert torch.equal(black.input_ids, batch.input_ids)
    assert torch.equal(
        batch.zero_images().to(CPU, torch.float32).media.inputs["image"].features,
        torch.full((count, 1, *SHAPE), 0.5),
    )


def refused(root: Path, tower: Path, **other) -> list[str]:
    config = settings(root, **other)
    with pytest.raises(ConfigError) as caught:
        open_features(tower, open_sources(config), config.max_images)
    assert {p.key for p in caught.value.problems} == {"data.features"}
    assert {p.remedy for p in caught.value.problems} == {"roseate features CONFIG"}
    assert {p.value for p in caught.value.problems} == {str(tower.parent)}
    return [p.rule for p in caught.value.problems]


def test_features_of_no_tower_or_another_are_refused(root, tmp_path):
    (rule,) = refused(root, tmp_path / "none" / "tower")
    assert (
        rule == "holds features of this tower and image format in tower/; there is no such folder"
    )
    (rule,) = refused(root, root / "features" / "other")
    assert rule.endswith("in other/, which has those of others alone")


def test_features_of_another_dataset_or_of_fewer_images_are_refused(root, tmp_path):
    tower = tmp_path / "tower"
    shutil.copytree(root / "features" / "tower", tower)
    assert len(open_features(tower, open_sources(settings(root)), 3).sources) == 2
    for name, dataset in open_sources(settings(root)).items():
        (tower / dataset.manifest.fingerprint[:16]).rename(tmp_path / name)
    assert [rule.partition(" in ")[0] for rule in refused(root, tower)] == [
        "holds features of every image of data.sources.pairs",
        "holds features of every image of data.sources.docs",
    ]
    (tmp_path / "pairs").rename(tower / load_manifest(root / "pairs", "k").fingerprint[:16])
    (rule,) = refused(root, tower)
    assert "data.sources.docs" in rule and rule.endswith("; 2 of 2 shards lack some")
    folder = tower / load_manifest(root / "docs", "k").fingerprint[:16]
    (tmp_path / "docs").rename(folder)
    (folder / "000001.npy").unlink()
    (rule,) = refused(root, tower)
    assert rule.endswith("; 1 of 2 shards lack some")


def test_a_selection_of_more_samples_is_refused(root):
    tower = root / "features" / "tower"
    every = DataConfig(sources={"docs": {"path": str(root / "docs")}})
    with pytest.raises(ConfigError, match="data.sources.docs .*; 2 of 2 shards lack some"):
        open_features(tower, open_sources(every), 3)


def test_the_folder_is_of_the_tower_and_of_how_images_come_to_it(image_format):
    folder = tower_folder("f", "weights", image_format)
    squash = replace(image_format, config=ImageInputConfig(fit="squash"))
    augmented = replace(image_format, config=ImageInputConfig(flip_ratio=0.5))
    others = [
        tower_folder("f", "other", image_format),
        tower_folder("f", "weights", squash),
        tower_folder("f", "weights", replace(image_format, size=13)),
        tower_folder("f", "weights", replace(image_format, mean=(0.5, 0.4, 0.31))),
        tower_folder("f", "weights", replace(image_format, std=(0.5, 0.4, 0.31))),
    ]
    assert len({folder, *others}) == 6 and len(folder.name) == 16
    assert tower_folder("f", "weights", augmented) == folder


def test_a_file_that_ends_early_fails_as_storage_does(root, tmp_path):
    tower = tmp_path / "tower"
    shutil.copytree(root / "features" / "tower", tower)
    config = settings(root)
    cache = open_features(tower, open_sources(config), 3)
    pairs = cache.sources[0]
    pairs.read(0, 0, 1, "k")  # opened
    with pairs.path(0).open("r+b") as file:
        file.truncate(200)
    with pytest.raises(OSError, match="a file of features ends before row 1"):
        pairs.read(0, 0, 1, "k")
