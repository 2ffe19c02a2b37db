"""The order: every sample once an epoch, a function of seed and position alone, local to lanes."""

import json
import secrets
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import Order, Places

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(any)


def order(counts, weights=None, *, seed=0, lanes=4, block=3) -> Order:
    named = {f"s{i}": np.array(c) for i, c in enumerate(counts)}
    weights = weights or [1.0] * len(counts)
    return Order(
        seed, named, [(0, dict(zip(named, weights, strict=True)))], lanes=lanes, block=block
    )


def pairs(places: Places) -> list[tuple]:
    return list(
        zip(places.source.tolist(), places.shard.tolist(), places.slot.tolist(), strict=True)
    )


@settings(max_examples=60)
@given(COUNTS, st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**63 - 1))
def test_each_epoch_holds_every_sample_once(counts, lanes, block, seed):
    one, size = order([counts], seed=seed, lanes=lanes, block=block), sum(counts)
    everything = {(0, shard, slot) for shard, count in enumerate(counts) for slot in range(count)}
    for epoch in (0, 1, 7):
        places = one.locate(np.arange(epoch * size, (epoch + 1) * size))
        assert set(pairs(places)) == everything and len(places) == size
        assert set(one.epoch(places)) == {epoch}


@settings(max_examples=30)
@given(st.lists(COUNTS, min_size=2, max_size=4), st.integers(0, 5000), st.integers(1, 60))
def test_a_batch_is_a_slice_of_the_order_in_another_arrangement(counts, position, size):
    mixed = order(counts, [1.0 + i for i in range(len(counts))])
    batch = mixed.batch(position, size)
    assert sorted(batch.position) == list(range(position, position + size))
    assert (np.diff(batch.lane) >= 0).all()
    again = mixed.locate(batch.position)
    assert pairs(again) == pairs(batch)


def test_epochs_and_seeds_differ():
    one = order([[500] * 4])
    epochs = [pairs(one.locate(np.arange(e * 2000, e * 2000 + 50))) for e in range(5)]
    other = order([[500] * 4], seed=1)
    epochs.append(pairs(other.locate(np.arange(50))))
    assert len(set(map(tuple, epochs))) == 6


def test_a_source_keeps_its_order_whatever_it_is_mixed_with():
    alone = order([[40, 30]])
    mixed = order([[40, 30], [9]], [1.0, 0.5])
    places = mixed.locate(np.arange(300))
    own = places[places.source == 0]
    assert pairs(own) == pairs(alone.locate(np.arange(len(own))))


def test_neighbours_are_spread_over_the_shards():
    one = order([[100] * 64], lanes=64, block=50)
    seen = one.locate(np.arange(640, 704)).shard
    assert len(set(seen)) > 48, "64 samples in a row come from about as many shards"


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
def test_a_rank_reads_its_own_shards_for_any_number_of_ranks(ranks):
    one = order([[1000] * 256, [1000] * 32], [8.0, 1.0], lanes=64, block=500)
    shards = [set() for _ in range(ranks)]
    for step in range(20):
        batch = one.batch(9000 + step * 256, 256)
        for rank in range(ranks):
            part = batch[rank * 256 // ranks : (rank + 1) * 256 // ranks]
            shards[rank] |= {(s, n) for s, n, _ in pairs(part)}
    together = set.union(*shards)
    read_twice = sum(map(len, shards)) - len(together)
    # At the borders two ranks may meet in one lane; without lanes every rank would read all of them.
    assert read_twice <= 4 * ranks


def test_far_positions_cost_nothing_and_do_not_depend_on_history():
    one, two = (order([[10_000] * 40_000], lanes=256, block=4096) for _ in range(2))
    for position in range(100):
        one.locate(np.array([position]))
    far = np.array([10**9, 3 * 10**9 + 1])
    assert pairs(one.locate(far)) == pairs(two.locate(far))


def test_another_process_finds_the_same_order():
    program = (
        "import json, numpy as np\nfrom pipeline.data.order import Order\n"
        "o = Order(7, {'a': np.array([5, 9, 1])}, [(0, {'a': 1.0})], lanes=2, block=4)\n"
        "p = o.locate(np.arange(40)); print(json.dumps([p.shard.tolist(), p.slot.tolist()]))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    here = Order(7, {"a": np.array([5, 9, 1])}, [(0, {"a": 1.0})], lanes=2, block=4)
    places = here.locate(np.arange(40))
    assert json.loads(said.stdout) == [places.shard.tolist(), places.slot.tolist()]


@settings(max_examples=40)
@given(COUNTS, st.integers(1, 9))
def test_successors_of_a_sample_are_others_until_the_lane_ends(counts, lanes):
    one, size = order([counts], lanes=lanes), sum(counts)
    rank = secrets.randbelow(size) + 3 * size
    tries = min(size - 1, 16)
    found = [one.sources[0].successor(rank, attempt) for attempt in range(1, tries + 1)]
    assert all(3 * size <= f < 4 * size for f in found), "of the same epoch"
    assert len({rank, *found}) == tries + 1, "each another sample"


def test_a_source_without_samples_is_refused():
    with pytest.raises(ValueError, match="source s0 has no sample"):
        order([[0, 0]])
