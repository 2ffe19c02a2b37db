"""A bijection of any size, the same on every machine and for ever."""

import secrets

import numpy as np
import pytest

from pipeline.data.permutation import hash_key, permute

# As the first version gave them: another order would be another run.
PERMUTED = [3, 0, 6, 7, 4, 5, 1, 2]
HASHED = 10598413913876379933


@pytest.mark.parametrize("size", [1, 2, 3, 10, 255, 256, 257, 1000, 4097])
def test_it_is_a_bijection(size):
    key = hash_key(secrets.randbits(63), "x")
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_every_index_has_a_size_and_a_key_of_its_own():
    sizes = np.random.default_rng().integers(1, 50, 200)
    index, keys = sizes - 1, hash_key(np.arange(200))
    together = permute(index, sizes, keys)
    alone = [int(permute(index[i : i + 1], sizes[i], keys[i : i + 1])[0]) for i in range(200)]
    assert together.tolist() == alone


def test_every_place_is_equally_likely():
    size, draws = 5, 20_000
    places = permute(np.full(draws, 2), size, hash_key(np.arange(draws), secrets.randbits(63)))
    counts = np.bincount(places, minlength=size)
    # Six standard deviations of a binomial: a right generator fails once in hundreds of millions.
    assert np.abs(counts - draws / size).max() < 6 * (draws * 0.2 * 0.8) ** 0.5


def test_the_order_of_a_run_does_not_change_with_a_library():
    assert permute(np.arange(8), 8, hash_key(1, "laion", 2)).tolist() == PERMUTED
    assert int(hash_key(1, "laion", np.array([5]))[0]) == HASHED


def test_keys_differ_in_every_part():
    keys = [
        hash_key(*parts)[0] for parts in [(1, 2), (2, 1), (1, 2, 0), (1,), ("1", 2), (0,), (0, 0)]
    ]
    assert len(set(map(int, keys))) == len(keys)
