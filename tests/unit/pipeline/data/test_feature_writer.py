"""A file of features is whole or not there, whenever its writer is killed; and what is there is kept."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_prep.bitmap import write_bitmap
from data_prep.schema import load_manifest
from data_prep.storage import Folder
from pipeline.data import feature_writer
from pipeline.data.dataset import Dataset
from pipeline.data.feature_writer import FeatureWriter
from pipeline.data.features import DatasetFeatures, open_shard
from pipeline.data.image import ImageFormat
from tests.helpers.dataset import write_dataset
from tests.unit.pipeline.data.conftest import interleaved, pair

IMAGE = ImageFormat(12, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
SHAPE = (3, 144)
EVERY = 9


def encode(pixels: np.ndarray) -> np.ndarray:
    """A tower whose features tell the pixels: a patch for each colour."""
    return (pixels.reshape(len(pixels), *SHAPE) / 256).astype(np.float16)


def damaged(number: int) -> dict[str, bytes]:
    """Documents of up to three images; of every fourth the second image, if any, is broken."""
    members = interleaved(number)
    if number % 4 == 1:
        members["3.jpg"] = b"no image"
    return members


def make_writer(max_images: int = EVERY, encode=encode, batch_size: int = 4) -> FeatureWriter:
    return FeatureWriter(
        IMAGE, encode, SHAPE, batch_size=batch_size, max_images=max_images, threads=2
    )


def write_all(features: DatasetFeatures, max_images: int = EVERY, **settings) -> int:
    with make_writer(max_images, **settings) as writer:
        lacking = features.lacking(max_images)
        return sum(writer.write(features, shard, lambda _: None) for shard in lacking)


def expected(dataset: Dataset, shard: int, slot: int) -> list[np.ndarray]:
    """Features of a kept sample, up to the first image that cannot be decoded."""
    found = []
    for data in dataset.parse(*dataset.read_spans([(shard, slot)])).images:
        try:
            found.append(encode(IMAGE.decode(data)[None])[0])
        except OSError:
            break
    return found


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer") / "docs"
    write_dataset(folder, [9, 1, 11], damaged)
    kept = [np.arange(size) % 3 != 1 for size in (9, 1, 11)]
    write_bitmap(Folder(str(folder), "k"), load_manifest(folder, "k"), "some", kept, "the test")
    return folder


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_sample_has_its_features_up_to_a_broken_image(docs, tmp_path, batch_size):
    dataset = Dataset(str(docs), "k")
    features = DatasetFeatures(tmp_path, dataset)
    assert features.lacking(EVERY) == [0, 1, 2]
    broken = write_all(features, batch_size=batch_size)
    assert broken == sum(n % 4 == 1 for n in range(21)) and features.lacking(EVERY) == []
    for shard, count in enumerate(dataset.counts):
        for slot in range(count):
            wanted = expected(dataset, shard, slot)
            found = features.read(shard, slot, len(wanted), "k")
            assert all(a.dtype == np.float16 for a in found)
            assert all((a == b).all() for a, b in zip(found, wanted, strict=True))


def test_the_file_is_an_npy_file_of_all_images(docs, tmp_path):
    features = DatasetFeatures(tmp_path, Dataset(str(docs), "k"))
    write_all(features)
    mapped = np.load(features.path(0), mmap_mode="r")
    assert mapped.dtype == np.float16
    images = features.dataset.index(0)["num_images"]
    assert mapped.shape == (images.sum(), *SHAPE)
    assert (mapped[0] == expected(features.dataset, 0, 0)[0]).all()


def test_progress_tells_the_images_of_the_shard(docs, tmp_path):
    features, told = DatasetFeatures(tmp_path, Dataset(str(docs), "k")), []
    with make_writer() as writer:
        writer.write(features, 2, told.append)
    whole = open_shard(features.path(2)).samples["whole"].sum()
    assert told == sorted(told) and told[-1] == whole


def test_more_samples_or_images_are_added_to_what_is_there(docs, tmp_path):
    every, some = Dataset(str(docs), "k"), Dataset(str(docs), "k", bitmaps=["some"])
    asked = []

    def counting(pixels):
        asked.append(len(pixels))
        return encode(pixels)

    write_all(DatasetFeatures(tmp_path, some), 1, encode=counting)
    assert DatasetFeatures(tmp_path, every).lacking(1) == [0, 2]  # all of shard 1 is kept
    first = sum(asked)
    asked.clear()
    features = DatasetFeatures(tmp_path, every)
    write_all(features, 1, encode=counting)
    assert first + sum(asked) == 21, "not one is encoded twice"
    assert DatasetFeatures(tmp_path, some).lacking(1) == []
    assert features.lacking(2) == [0, 1, 2]
    write_all(DatasetFeatures(tmp_path, some))
    # Those that the selection leaves out are still there with their first image.
    assert features.lacking(1) == []
    for shard, count in enumerate(every.counts):
        for slot in range(count):
            (found,) = features.read(shard, slot, 1, "k")
            assert (found == expected(every, shard, slot)[0]).all()


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_damaged_file_is_no_file_and_is_written_again(docs, tmp_path, keep):
    features = DatasetFeatures(tmp_path, Dataset(str(docs), "k"))
    write_all(features)
    path = features.path(2)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ValueError, match="000002.npy is damaged .*; remove it"):
        open_shard(path)
    assert features.lacking(EVERY) == [2]
    write_all(features)
    assert path.read_bytes() == whole


def test_a_writer_that_fails_leaves_nothing(docs, tmp_path):
    features = DatasetFeatures(tmp_path, Dataset(str(docs), "k"))

    def fail(pixels):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_all(features, encode=fail)
    assert not list(tmp_path.rglob("*.np*"))


def test_what_a_killed_writer_left_is_removed_when_it_is_old(docs, tmp_path, monkeypatch):
    features = DatasetFeatures(tmp_path, Dataset(str(docs), "k"))
    features.folder.mkdir(parents=True)
    old, young = (features.folder / f".000000.npy.{n}" for n in (1, 2))
    for left in (old, young):
        left.write_bytes(b"half")
    hours_ago = time.time() - 2 * feature_writer.SECONDS_TO_ABANDON
    os.utime(old, (hours_ago, hours_ago))
    write_all(features)
    assert not old.exists() and young.exists()


STANDS = """
import sys, time
from pathlib import Path
from pipeline.data.dataset import Dataset
from pipeline.data.features import DatasetFeatures
from tests.unit.pipeline.data.test_feature_writer import make_writer

left = int(sys.argv[3])

def tell(shard):
    global left
    left -= 1
    print(shard, flush=True)
    if not left:
        time.sleep(600)  # to be killed here, however long that takes

features = DatasetFeatures(Path(sys.argv[2]), Dataset(sys.argv[1], "k"))
with make_writer() as writer:
    for shard in features.lacking(9):
        writer.write(features, shard, lambda _: tell(shard))
"""


@pytest.mark.parametrize("lines", [1, 5, 9])
def test_a_killed_writer_goes_on_with_the_missing_shards(tmp_path, lines):
    write_dataset(tmp_path / "pairs", [13, 7, 24], pair)
    dataset = Dataset(str(tmp_path / "pairs"), "k")
    undisturbed = DatasetFeatures(tmp_path / "one", dataset)
    write_all(undisturbed)
    features = DatasetFeatures(tmp_path / "two", dataset)
    command = [sys.executable, "-c", STANDS, str(tmp_path / "pairs"), str(tmp_path / "two")]
    writer = subprocess.Popen([*command, str(lines)], stdout=subprocess.PIPE, text=True)
    told = [int(writer.stdout.readline()) for _ in range(lines)]
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    lacking = features.lacking(EVERY)
    assert lacking == [*range(told[-1], 3)]
    assert list(features.folder.glob(".*")), "it was killed in the middle of a file"
    before = {s: features.path(s).stat().st_mtime_ns for s in range(3) if s not in lacking}
    write_all(features)
    assert features.lacking(EVERY) == []
    for shard in range(3):
        assert features.path(shard).read_bytes() == undisturbed.path(shard).read_bytes()
        assert before.get(shard) in (None, features.path(shard).stat().st_mtime_ns)
