"""What cannot be used is replaced by the next of its lane, the same for everybody, and is told."""

import json
import logging

import numpy as np
import pytest

from data_prep.errors import DataBudgetError
from pipeline.data.batch import Batch, Replacement
from pipeline.data.budget import UnusableLog, check_budget
from pipeline.data.config import BudgetConfig
from pipeline.data.dataset import Dataset
from pipeline.data.order import Order
from pipeline.data.samples import SampleReader
from tests.helpers.dataset import write_dataset
from tests.unit.pipeline.data.conftest import pair

BROKEN = {3, 11, 12, 13, 40}


def damaged(number: int) -> dict[str, bytes]:
    members = pair(number)
    if number in BROKEN:
        members["jpg"] = members["jpg"][: len(members["jpg"]) // 3]
    return members


def far(number: int) -> dict[str, bytes]:
    """Every second document has its image where it is cut."""
    return {
        "0.txt": b"red " * (40 if number % 2 else 1),
        **{f"1.{e}": pair(number)[e] for e in ["jpg"]},
        "2.txt": b"star",
    }


def make_reader(folder, text_format, image_format, most_in_a_row=16) -> SampleReader:
    dataset = Dataset(str(folder), "k")
    order = Order(1, {"a": dataset.counts}, [(0, {"a": 1.0})], lanes=4, block=5)
    return SampleReader([dataset], order, text_format, image_format, 1, most_in_a_row)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, text_format, image_format):
    folder = tmp_path_factory.mktemp("samples") / "a"
    write_dataset(folder, [20, 30], damaged)
    return make_reader(folder, text_format, image_format)


def number(key: str) -> int:
    return int(key.split("/")[1])


def test_broken_samples_are_replaced_by_whole_ones_and_told(reader):
    places = reader.order.locate(np.arange(50))
    samples, replaced = reader.read(places)
    assert [s.position for s in samples] == list(range(50))
    assert not {number(s.key) for s in samples} & BROKEN
    assert {number(s.key) for s in samples} == set(range(50)) - BROKEN
    # A stand-in that is broken itself is told too, at the position that asked for it.
    assert {number(r.key) for r in replaced} == BROKEN
    assert all(r.counted and "image 0 cannot be decoded" in r.reason for r in replaced)
    whole = {s.position for s in samples} - {r.position for r in replaced}
    record = reader.datasets[0].record
    for i in whole:
        where = int(places.shard[i]), int(places.slot[i])
        assert number(samples[i].key) == int(record(*where)["row"])


def test_the_stand_in_does_not_depend_on_who_asks(reader):
    places = reader.order.locate(np.arange(50))
    together, _ = reader.read(places)
    for i in np.random.default_rng().permutation(50):
        (alone,), _ = reader.read(places[i : i + 1])
        assert alone.key == together[i].key and alone.encoded == together[i].encoded
        assert all((a == b).all() for a, b in zip(alone.pixels, together[i].pixels, strict=True))


def test_samples_without_a_target_are_replaced_but_not_counted(tmp_path, text_format, image_format):
    write_dataset(tmp_path / "a", [10], far)
    far_reader = make_reader(tmp_path / "a", text_format, image_format)
    samples, replaced = far_reader.read(far_reader.order.locate(np.arange(10)))
    assert all(s.encoded.num_targets for s in samples)
    assert replaced and not any(r.counted for r in replaced)
    assert {r.reason for r in replaced} == {"no token is a target"}


def test_a_shard_that_is_broken_whole_ends_the_run(tmp_path, text_format, image_format):
    write_dataset(tmp_path / "a", [30], lambda n: pair(n) | {"jpg": b"no image"})
    broken = make_reader(tmp_path / "a", text_format, image_format, most_in_a_row=5)
    message = "5 samples in a row cannot be used, at position 0: a/.* data.budget.in_a_row"
    with pytest.raises(DataBudgetError, match=message):
        broken.read(broken.order.locate(np.arange(1)))


def test_the_budget_is_a_share_of_all_samples():
    budget = BudgetConfig(percent=0.5)
    check_budget(budget, replaced=5, consumed=10)
    check_budget(budget, replaced=50, consumed=10_000)
    for replaced, consumed in ((6, 10), (51, 10_000)):
        with pytest.raises(DataBudgetError, match=f"{replaced} of {consumed} .*budget.percent=0.5"):
            check_budget(budget, replaced=replaced, consumed=consumed)


def test_what_was_replaced_is_listed_with_its_key(tmp_path, caplog):
    batch = object.__new__(Batch)
    object.__setattr__(batch, "replaced", [Replacement(7, "a/000000003", "cut off", True)])
    listed = UnusableLog(tmp_path, 2)
    with caplog.at_level(logging.WARNING):
        listed.add([batch])
        listed.add([batch])
    lines = (tmp_path / "unusable/rank_0002.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a/000000003"] * 2
    assert "a/000000003 cannot be used: cut off" in caplog.text
