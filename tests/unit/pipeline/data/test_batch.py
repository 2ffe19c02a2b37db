"""Batches hold what they say: masks, slots and pixels, packed or not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data.batch import Batch, Sample, collate
from pipeline.data.text import IGNORE
from tests.unit.pipeline.data.conftest import caption, picture

CPU = torch.device("cpu")


@pytest.fixture
def samples(text_format, image_format) -> list[Sample]:
    documents = [[picture(n), caption(n)] for n in range(5)]
    documents += [["red", picture(9), "star", picture(10), "blue square"]]
    return [
        Sample(
            f"a/{i}",
            "",
            encoded,
            [image_format.decode(p) for p in parts if isinstance(p, bytes)],
            i,
        )
        for i, (parts, encoded) in enumerate(
            zip(documents, text_format.encode(documents), strict=True)
        )
    ]


def make(samples, text_format, image_format, **settings) -> Batch:
    return collate(samples, image_format, pad_id=text_format.pad_id, **settings)


def test_one_row_a_sample(samples, text_format, image_format):
    batch = make(samples, text_format, image_format)
    assert batch.documents is None
    assert batch.media.slots.tolist() == [[i, -1] for i in range(5)] + [[5, 6]]
    for row, sample in enumerate(samples):
        length = len(sample.encoded.ids)
        assert batch.input_ids[row, :length].tolist() == sample.encoded.ids
        assert batch.labels[row, :length].tolist() == sample.encoded.labels
        assert batch.attention_mask[row].sum() == length
    assert (batch.input_ids[~batch.attention_mask] == text_format.pad_id).all()
    assert (batch.labels[~batch.attention_mask] == IGNORE).all()
    assert batch.num_target_tokens == sum(s.encoded.num_targets for s in samples)
    assert batch.num_tokens == sum(len(s.encoded.ids) for s in samples)
    assert batch.num_images == sum(s.encoded.num_images for s in samples)


@pytest.mark.parametrize("pack_tokens", [None, 64])
def test_every_token_knows_its_source(samples, text_format, image_format, pack_tokens):
    named = [replace(s, key=f"{'ab'[i % 2]}/{i}") for i, s in enumerate(samples)]
    named[3] = replace(named[3], key="elsewhere/a/3")
    batch = make(named, text_format, image_format, pack_tokens=pack_tokens)
    sources = batch.token_sources(["b", "a"])
    for number, sample in enumerate(named):
        here = batch.samples == number
        assert batch.input_ids[here].tolist() == sample.encoded.ids
        expected = {"b": 0, "a": 1}.get(sample.key.partition("/")[0], 2)
        assert (sources[here] == expected).all()
    assert (sources[batch.samples < 0] == 2).all()
    assert ((batch.samples >= 0) == batch.attention_mask).all()


def test_packed_rows_hold_the_same_tokens_and_images(samples, text_format, image_format):
    batch = make(samples, text_format, image_format, pack_tokens=48)
    assert len(batch.input_ids) < len(samples) and batch.keys == [s.key for s in samples]
    assert batch.num_target_tokens == sum(s.encoded.num_targets for s in samples)
    found = []
    for row in range(len(batch.input_ids)):
        slot = 0
        for number in range(int(batch.documents[row].max()) + 1):
            here = batch.documents[row] == number
            ids = batch.input_ids[row, here].tolist()
            count = ids.count(text_format.token_ids.media["image"])
            images = batch.media.slots[row, slot : slot + count].tolist()
            slot += count
            pixels = [batch.media.inputs["image"].data[i, 0].numpy() for i in images]
            found.append((ids, batch.labels[row, here].tolist(), pixels))
        assert (batch.media.slots[row, slot:] == -1).all()
        assert ((batch.documents[row] >= 0) == batch.attention_mask[row]).all()
    key = lambda entry: entry[0]  # noqa: E731
    wanted = [(s.encoded.ids, s.encoded.labels, s.pixels) for s in samples]
    for one, two in zip(sorted(found, key=key), sorted(wanted, key=key), strict=True):
        assert one[:2] == two[:2]
        assert all((a == b).all() for a, b in zip(one[2], two[2], strict=True))


def test_images_are_bytes_until_they_are_moved(samples, text_format, image_format):
    batch = make(samples, text_format, image_format)
    pixels = batch.media.inputs["image"].data
    assert pixels.dtype == torch.uint8 and pixels.shape == (7, 1, 3, 12, 12)
    moved = batch.to(CPU, torch.float64).media.inputs["image"].data
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (batch.mean, batch.std)
    )
    expected = (pixels.double() / 255 - mean) / std
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)  # computed in fp32
    again = batch.to(CPU, torch.float64).to(CPU, torch.float64)
    assert torch.equal(again.media.inputs["image"].data, moved)


def test_the_control_is_black_and_must_be_asked_for_in_time(samples, text_format, image_format):
    batch = make(samples, text_format, image_format)
    black = batch.zero_images()
    assert black.media.inputs["image"].data.max() == 0
    assert torch.equal(black.input_ids, batch.input_ids)
    with pytest.raises(ValueError, match="before they are normalised"):
        batch.to(CPU, torch.float32).zero_images()


def test_a_batch_without_an_image_still_runs_the_encoder(samples, text_format, image_format):
    (encoded,) = text_format.encode([["red"]])
    alone = [replace(samples[0], encoded=encoded, pixels=[])]
    batch = make(alone, text_format, image_format)
    assert batch.media.slots.tolist() == [[-1]]
    assert batch.media.inputs["image"].data.shape == (1, 1, 3, 12, 12)


def test_without_an_image_format_there_are_no_pixels_to_speak_of(samples, text_format):
    batch = collate([replace(samples[0], pixels=[])], None, pad_id=text_format.pad_id)
    assert batch.to(CPU, torch.float32).media.inputs["image"].data.numel() == 3
    assert np.isfinite(batch.to(CPU, torch.float32).media.inputs["image"].data).all()
