"""Reading by index equals reading the tar; held-out images are apart; batches hold what they say."""

import io
import tarfile

import pytest
import torch

from data_prep.errors import ConfigError
from model.tokens import TokenIds
from pipeline.batch_plan import BatchPlan
from pipeline.config import DataConfig
from pipeline.data.batch import IGNORE, ImageFormat, TextFormat, collate
from pipeline.data.loader import HeldOut, TrainStream
from pipeline.data.shards import ShardReader
from pipeline.data.tokenizer import train_tokenizer
from tests.helpers.dataset import write_scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, 60, shard_rows=25)
    return folder


@pytest.fixture(scope="module")
def formats(folder):
    reader = ShardReader(str(folder), "k")
    texts = [reader.read(n).text for n in range(len(reader))]
    text = TextFormat(train_tokenizer(texts, 300), TokenIds({"image": 300}), 24)
    return text, ImageFormat(64, (0.5,) * 3, (0.5,) * 3)


def test_index_points_at_the_members(folder):
    reader = ShardReader(str(folder), "k")
    members = []
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            members += [(m.name, tar.extractfile(m).read()) for m in tar]
    images = [data for name, data in members if name.endswith(".jpg")]
    texts = [data.decode() for name, data in members if name.endswith(".txt")]
    assert [reader.read(n).image for n in range(60)] == images
    assert [reader.read(n).text for n in range(60)] == texts


def test_held_out_fraction_divides_without_overlap(folder):
    kept = ShardReader(str(folder), "k", held_out_fraction=0.3)
    apart = ShardReader(str(folder), "k", held_out_fraction=0.3, held_out=True)
    assert len(kept) + len(apart) == 60 and len(apart) > 3
    keys = [{r.read(n).key for n in range(len(r))} for r in (kept, apart)]
    assert not keys[0] & keys[1]


def test_nothing_left_is_refused(folder):
    with pytest.raises(ConfigError, match="at least one sample"):
        ShardReader(str(folder), "k", held_out_fraction=1e-9, held_out=True)


def test_batches_mask_marks_and_padding(formats):
    text, image = formats
    buffer = io.BytesIO()
    from PIL import Image

    from pipeline.data.shards import RawSample

    Image.new("RGB", (32, 48), (255, 0, 0)).save(buffer, "PNG")
    samples = [RawSample(buffer.getvalue(), t, "k") for t in ("a red star", "a large red star")]
    batch = collate(samples, text, image)
    pixels = batch.media.inputs["image"].data
    assert pixels.shape == (2, 1, 3, 64, 64) and batch.media.slots.tolist() == [[0], [1]]
    assert pixels[0, 0, 0].min() == 1.0 and pixels[0, 0, 1].max() == -1.0
    assert (batch.zero_images().media.inputs["image"].data == 0).all()
    assert (batch.input_ids[:, 0] == 300).all() and (batch.labels[:, :2] == IGNORE).all()
    assert (batch.labels[~batch.attention_mask] == IGNORE).all()
    assert batch.num_target_tokens == int((batch.labels != IGNORE).sum())
    assert text.decode(batch.input_ids[1, 2:].tolist()) == "a large red star"


def test_long_captions_are_cut_and_still_end(formats):
    text, _ = formats
    ids, labels = text.encode("red " * 100)
    assert len(ids) == len(labels) == 24 and ids[-1] == text.tokenizer.eos_token_id


def test_image_mark_in_a_caption_asks_for_no_image(formats):
    text, _ = formats
    hostile = TextFormat(text.tokenizer, TokenIds({"image": text.encode("red")[0][2]}), 24)
    assert hostile.encode("red red")[0].count(hostile.token_ids.media["image"]) == 1


def test_stream_does_not_depend_on_the_number_of_ranks(folder, formats):
    config = DataConfig(sources={"scenes": {"path": str(folder)}})
    stream = TrainStream(config, 3, *formats)

    def keys(micro, world):
        plan = BatchPlan(8, micro, world)
        per_rank = [list(stream.steps(plan, rank, 0, 10)) for rank in range(world)]
        return [
            [
                key
                for m in range(plan.accumulation_steps)
                for rank in range(world)
                for key in per_rank[rank][step][m].keys
            ]
            for step in range(10)
        ]

    assert keys(8, 1) == keys(4, 2) == keys(1, 2) == keys(2, 4)


def test_held_out_gives_every_rank_as_many_batches(folder, formats):
    config = DataConfig(sources={"scenes": {"path": str(folder)}}, held_out={"path": str(folder)})
    held_out = HeldOut(config, *formats)
    ranks = [held_out.batches(50, 8, rank, 3) for rank in range(3)]
    assert [len(r) for r in ranks] == [2, 2, 2]
    keys = [k for r in ranks for b in r for k in b.keys]
    assert len(keys) == len(set(keys)) == 48
    assert torch.is_tensor(ranks[0][0].media.slots)
