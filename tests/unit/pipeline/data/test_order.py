"""The order is a bijection per epoch, mixed exactly, and a function of seed and position alone."""

import secrets

import numpy as np
import pytest

from pipeline.data.order import Order, permute


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000, 4097])
def test_permute_is_a_bijection(size):
    key = (secrets.randbits(32), 1, 2)
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_each_epoch_holds_every_sample_once_in_another_order():
    order = Order(secrets.randbits(16), [7], [1.0])
    epochs = [[order.locate(e * 7 + i)[1] for i in range(7)] for e in range(20)]
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 10


@pytest.mark.parametrize("weights", [[1, 2, 0.5], [1], [1, 1], [0.3, 0.3, 0.4, 5, 0.001]])
def test_every_prefix_holds_each_share_and_no_sample_is_skipped(weights):
    size = 50
    order = Order(3, [size] * len(weights), weights)
    drawn = [order.locate(p) for p in range(2500)]
    share = order._per_cycle / order._per_cycle.sum()
    counts = np.zeros(len(weights))
    for position, (source, _) in enumerate(drawn):
        counts[source] += 1
        assert np.all(np.abs(counts - share * (position + 1)) < 1)
    for source in range(len(weights)):
        own = [n for s, n in drawn if s == source]
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start : start + size]) == list(range(size))


def test_far_positions_cost_nothing_and_do_not_depend_on_history():
    one, two = (Order(1, [400_000_000], [1.0]) for _ in range(2))
    for position in range(100):
        one.locate(position)
    assert one.locate(10**9) == two.locate(10**9)


def test_seed_changes_the_order():
    a, b = Order(1, [1000], [1.0]), Order(2, [1000], [1.0])
    assert [a.locate(i) for i in range(50)] != [b.locate(i) for i in range(50)]


def test_sizes_and_weights_must_pair():
    with pytest.raises(ValueError, match="one positive size per weight"):
        Order(0, [0], [1.0])
