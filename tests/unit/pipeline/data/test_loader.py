"""The same global batches for any number of ranks, workers and micro-batches, from any position."""

import hashlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.bitmap import write_bitmap
from data_prep.errors import ConfigError, DataBudgetError
from data_prep.schema import load_manifest
from data_prep.storage import Folder
from pipeline.batch_plan import BatchPlan
from pipeline.data.batch import Batch
from pipeline.data.config import DataConfig
from pipeline.data.held_out import HeldOut
from pipeline.data.loader import TrainStream
from tests.helpers.dataset import write_dataset
from tests.unit.pipeline.data.conftest import interleaved, pair

GLOBAL = 24
RANKS = (1, 2, 3, 4, 6, 8)


def damaged(number: int) -> dict[str, bytes]:
    return pair(number) | ({"jpg": b"no image"} if number % 17 == 5 else {})


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict:
    """Pairs of which some are broken, documents with a selection, and a source of single samples."""
    root = tmp_path_factory.mktemp("loader")
    write_dataset(root / "pairs", [13, 1, 40, 7], damaged)
    write_dataset(root / "docs", [9, 11], interleaved)
    write_dataset(root / "few", [1, 1], lambda n: pair(500 + n))
    kept = [np.arange(9) % 3 != 0, np.arange(11) % 2 == 0]
    write_bitmap(
        Folder(str(root / "docs"), "k"), load_manifest(root / "docs", "k"), "some", kept, "the test"
    )
    return {
        "pairs": {"path": str(root / "pairs"), "weight": 1.0},
        "docs": {"path": str(root / "docs"), "weight": 0.3, "bitmaps": ["some"]},
        "few": {"path": str(root / "few"), "weight": 0.05},
    }


def make(sources, text_format, image_format, *, resume=None, **settings) -> TrainStream:
    settings = {"lanes": 8, "shuffle_block": 6, "budget": {"percent": 50}} | settings
    augment = {"crop_area": 0.5, "flip_ratio": 0.3}
    config = DataConfig(sources=sources, max_text_tokens=24, image=augment, **settings)
    image = image_format.__class__(
        image_format.size, image_format.mean, image_format.std, config.image
    )
    return TrainStream(config, 3, text_format, image, resume=resume)


def contents(batches: list[Batch]) -> dict[int, tuple]:
    """Position -> key, tokens, labels and pixels, whatever the layout."""
    found = {}
    for batch in batches:
        documents = batch.documents
        if documents is None:
            documents = torch.where(batch.attention_mask, 0, -1)
        owners = [
            (row, documents[row] == number)
            for row in range(len(documents))
            for number in range(int(documents[row].max()) + 1)
        ]
        seen = {}
        for row, here in owners:
            ids = batch.input_ids[row, here]
            earlier = int((batch.input_ids[row, : int(here.int().argmax())] == 301).sum())
            slots = batch.media.slots[row, earlier : earlier + int((ids == 301).sum())]
            pixels = batch.media.inputs["image"].data[slots].numpy().tobytes()
            labels = batch.labels[row, here].tolist()
            value = (tuple(ids.tolist()), tuple(labels), hashlib.sha256(pixels).hexdigest())
            seen.setdefault(value, 0)
            seen[value] += 1
        found |= {p: k for p, k in zip(batch.positions, batch.keys, strict=True)}
        found.setdefault("contents", []).extend(seen.items())
    found["contents"] = sorted(found["contents"])
    return found


def global_batch(stream: TrainStream, plan: BatchPlan, position: int) -> dict:
    return contents(
        [
            stream.micro_batch(plan, position, rank, micro_step)
            for rank in range(plan.world_size)
            for micro_step in range(plan.accumulation_steps)
        ]
    )


def plans() -> list[BatchPlan]:
    return [
        BatchPlan(GLOBAL, micro, ranks)
        for ranks in RANKS
        for micro in range(1, GLOBAL // ranks + 1)
        if GLOBAL % (ranks * micro) == 0
    ]


@pytest.mark.parametrize("pack_tokens", [None, 64])
def test_any_division_gives_the_same_global_batch(sources, text_format, image_format, pack_tokens):
    stream = make(sources, text_format, image_format, pack_tokens=pack_tokens)
    for position in [0, *(secrets.randbelow(10**9) for _ in range(3))]:
        whole = global_batch(stream, BatchPlan(GLOBAL, GLOBAL, 1), position)
        assert {p for p in whole if p != "contents"} == set(range(position, position + GLOBAL))
        for plan in plans():
            assert global_batch(stream, plan, position) == whole, plan


def test_packing_changes_the_layout_alone(sources, text_format, image_format):
    position, plan = secrets.randbelow(10**6), BatchPlan(GLOBAL, GLOBAL, 1)
    one, two = (make(sources, text_format, image_format, pack_tokens=p) for p in (None, 64))
    assert global_batch(one, plan, position) == global_batch(two, plan, position)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_gives_the_same_batches(sources, text_format, image_format, workers):
    position, plan = secrets.randbelow(10**6), BatchPlan(GLOBAL, 4, 3)
    stream = make(sources, text_format, image_format, pack_tokens=48, workers=workers)
    coming = [list(stream.steps(plan, rank, position, 2)) for rank in range(3)]
    for step in range(2):
        here = position + step * GLOBAL
        expected = global_batch(stream, plan, here)
        assert contents([b for rank in coming for b in rank[step]]) == expected


def test_batches_come_in_order_and_hold_as_many_samples(sources, text_format, image_format):
    stream = make(sources, text_format, image_format)
    plan = BatchPlan(GLOBAL, 4, 2)
    steps = list(stream.steps(plan, 1, 48, 3))
    assert [len(step) for step in steps] == [3, 3, 3]
    for step, batches in enumerate(steps):
        for micro_step, batch in enumerate(batches):
            direct = stream.micro_batch(plan, 48 + step * GLOBAL, 1, micro_step)
            assert batch.keys == direct.keys and torch.equal(batch.input_ids, direct.input_ids)


def test_an_error_of_the_budget_is_handed_to_the_loop(tmp_path, text_format, image_format):
    write_dataset(tmp_path / "bad", [30], lambda n: pair(n) | {"jpg": b"no"})
    stream = make({"bad": {"path": str(tmp_path / "bad")}}, text_format, image_format)
    (step,) = stream.steps(BatchPlan(4, 2, 1), 0, 0, 1)
    assert isinstance(step, DataBudgetError)


def test_every_source_that_cannot_be_read_is_told(tmp_path, text_format, image_format):
    bad = {name: {"path": str(tmp_path / name)} for name in ("one", "two")}
    with pytest.raises(ConfigError) as caught:
        make(bad, text_format, image_format)
    assert [p.key for p in caught.value.problems] == [
        "data.sources.one.path",
        "data.sources.two.path",
    ]


def test_no_source_at_all_is_refused(text_format, image_format):
    with pytest.raises(ConfigError, match="names at least one dataset"):
        make({}, text_format, image_format)


def test_a_changed_dataset_is_refused_where_a_run_goes_on(sources, text_format, image_format):
    saved = make(sources, text_format, image_format).state.advanced(100).to_json()
    fewer = sources | {"docs": {**sources["docs"], "bitmaps": []}}
    with pytest.raises(ConfigError, match="data.sources.docs") as caught:
        make(fewer, text_format, image_format, resume=(saved, "checkpoints/step_000004"))
    assert "checkpoints/step_000004" in caught.value.problems[0].rule


def test_changed_weights_hold_from_where_the_run_goes_on(sources, text_format, image_format):
    first = make(sources, text_format, image_format)
    saved = first.state.advanced(240).to_json()
    other = sources | {"few": {**sources["few"], "weight": 0.5}}
    second = make(other, text_format, image_format, resume=(saved, "x"))
    assert [at for at, _ in second.state.weights] == [0, 240]
    plan = BatchPlan(GLOBAL, GLOBAL, 1)
    assert global_batch(first, plan, 216) == global_batch(second, plan, 216)
    before, after = (s.order.locate(np.arange(240, 2240)).source for s in (first, second))
    assert abs((before == 2).sum() - 2000 * 0.05 / 1.35) < 1
    assert abs((after == 2).sum() - 2000 * 0.5 / 1.8) < 1


def test_workers_do_not_hear_the_signals_that_stop_a_run(tmp_path):
    """A cluster sends them to every process of a job; the rank goes on to its next step and saves."""
    write_dataset(tmp_path / "pairs", [40], pair)
    program = SIGNALLED.format(folder=str(tmp_path / "pairs"))
    for number in (signal.SIGTERM, signal.SIGUSR1):
        (tmp_path / "go.py").write_text(program)
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "go.py")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])},
        )
        assert process.stdout.readline() == "begun\n"
        os.killpg(process.pid, number)
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and said == "heard True, 30 steps\n", errors[-2000:]


SIGNALLED = """
import signal, time
from pipeline.batch_plan import BatchPlan
from pipeline.data.config import DataConfig
from pipeline.data.loader import TrainStream
from pipeline.data.text import TextFormat
from pipeline.data.tokenizer import train_tokenizer

def main():
    heard = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: heard.append(1))
    config = DataConfig(sources={{"a": {{"path": "{folder}"}}}}, workers=1, prefetch_batches=1)
    stream = TrainStream(config, 1, TextFormat(train_tokenizer(["red"], 300), None, 16), None)
    steps = 0
    for batches in stream.steps(BatchPlan(8, 4, 1), 0, 0, 30):
        assert len(batches) == 2
        steps += 1
        if steps == 1:
            print("begun", flush=True)
            while not heard:
                time.sleep(0.01)
            time.sleep(0.5)
    print(f"heard {{bool(heard)}}, {{steps}} steps", flush=True)

if __name__ == "__main__":
    main()
"""


def test_a_storage_that_fails_is_handed_to_the_loop(sources, text_format, image_format):
    stream = make(sources, text_format, image_format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", lambda *_: b"")
        (step,) = stream.steps(BatchPlan(4, 2, 1), 0, 0, 1)
    assert isinstance(step, OSError) and "the storage gave 0 of" in str(step)


def held_out(sources, text_format, image_format, **settings) -> HeldOut:
    apart = {"held_out": {"path": sources["pairs"]["path"]}} | settings
    return HeldOut(DataConfig(sources=sources, **apart), text_format, image_format)


def test_held_out_gives_every_rank_as_many_batches(sources, text_format, image_format):
    apart = held_out(sources, text_format, image_format)
    ranks = [apart.batches(50, 8, rank, 3) for rank in range(3)]
    assert [len(r) for r in ranks] == [2, 2, 2]
    numbers = [[int(k.split("/")[1]) for k in b.keys] for r in ranks for b in r]
    # Ranks take turns; a broken sample is left out.
    starts = [(i * 3 + rank) * 8 for rank in range(3) for i in range(2)]
    expected = [[n for n in range(start, start + 8) if n % 17 != 5] for start in starts]
    assert numbers == expected
    assert all(b.documents is None for r in ranks for b in r)


def test_fewer_held_out_samples_than_ranks_are_refused(sources, text_format, image_format):
    with pytest.raises(ConfigError, match="gives every one of 60 ranks a sample"):
        held_out(sources, text_format, image_format).batches(50, 8, 0, 60)


def test_held_out_samples_that_are_all_broken_end_the_run(tmp_path, text_format, image_format):
    write_dataset(tmp_path / "bad", [6], lambda n: pair(n) | {"jpg": b"no"})
    bad = {"pairs": {"path": str(tmp_path / "bad")}}
    with pytest.raises(DataBudgetError, match="none of 3 held-out samples in a row can be used"):
        held_out(bad, text_format, image_format).batches(6, 3)


def test_nothing_to_hold_out_is_refused(sources, text_format, image_format):
    with pytest.raises(ConfigError, match="data.held_out = None"):
        held_out(sources, text_format, image_format, held_out=None)
