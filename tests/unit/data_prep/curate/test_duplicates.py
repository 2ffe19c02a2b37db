"""Against every pair compared with every other, on hashes drawn anew with many that are near."""

from collections import Counter

import numpy as np
import pytest

from data_prep.curate import duplicates
from data_prep.curate.duplicates import repeated, similar_to_earlier

RANDOM = np.random.default_rng()


def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and miniatures, half of them near to another's."""
    hashes = RANDOM.integers(0, 2**64, count, dtype=np.uint64)
    strength = RANDOM.choice([0.1, 1.0], (count, 1, 1, 1))  # some are faint
    small = (RANDOM.integers(0, 256, (count, 2, 2, 3)) * strength).astype(np.uint8)
    for number in RANDOM.permutation(count)[: count // 2]:
        like = RANDOM.integers(count)
        hashes[number] = hashes[like]
        if RANDOM.random() < 0.2:
            small[number] = small[like]
            continue
        for _ in range(RANDOM.integers(0, 9)):
            hashes[number] ^= np.uint64(1) << np.uint64(RANDOM.integers(64))
        width = RANDOM.integers(0, 25)
        noise = RANDOM.integers(-width, width + 1, small[like].shape)
        small[number] = np.clip(small[like].astype(int) + noise, 0, 255).astype(np.uint8)
    return hashes, small


def looks_of(hashes, small) -> np.ndarray:
    """Equal where hash and miniature are."""
    rows = [h.tobytes() + s.tobytes() for h, s in zip(hashes, small, strict=True)]
    numbers = {row: number for number, row in enumerate(dict.fromkeys(rows))}
    return np.array([numbers[row] for row in rows], np.uint64)


def similar(hashes, small, **limits) -> np.ndarray:
    return similar_to_earlier(hashes, looks_of(hashes, small), lambda n: small[n], **limits)


def are_similar(one, two, hashes, small, hash_distance) -> bool:
    bits = int(hashes[one] ^ hashes[two]).bit_count()
    levels = np.abs(small[one].astype(int) - small[two]).max()
    contrast = min(int(s.max()) - int(s.min()) for s in (small[one], small[two]))
    return bits <= hash_distance and levels <= min(16, max(contrast // 4, 2))


def by_hand(hashes, small, hash_distance, fixed, among_rest) -> list[int]:
    found = []
    for one in range(len(hashes)):
        found.append(-1)
        for two in range(one if one >= fixed else 0):
            stays = two < fixed or (among_rest and found[two] < 0)
            if stays and are_similar(one, two, hashes, small, hash_distance):
                found[one] = two
                break
    return found


@pytest.mark.parametrize("few_enough", [(1000, 1000), (10, 1000), (10, 10)])
@pytest.mark.parametrize("distance", range(8))
@pytest.mark.parametrize(("fixed", "among_rest"), [(0, True), (30, True), (30, False)])
def test_equals_a_comparison_of_all_with_all(monkeypatch, distance, fixed, among_rest, few_enough):
    """Also where two bands have to agree, or three."""
    monkeypatch.setattr(duplicates, "FEW_ENOUGH", few_enough)
    hashes, small = draw(200)
    limits = {"hash_distance": distance, "miniature_distance": 16}
    found = similar(hashes, small, **limits, fixed=fixed, among_rest=among_rest)
    expected = np.array(by_hand(hashes, small, distance, fixed, among_rest))
    assert np.array_equal(found >= 0, expected >= 0)
    assert np.array_equal(found >= fixed, expected >= fixed)
    # Of several that stay any may be named.
    for one in np.flatnonzero(found >= 0):
        assert found[one] < one and found[found[one]] < 0
        assert are_similar(one, found[one], hashes, small, distance)


def test_chains_are_not_drawn_together():
    """The second is like the first, the third like the second alone: it stays."""
    hashes = np.array([0b000, 0b011, 0b111], np.uint64)
    small = np.zeros((3, 1), np.uint8)
    found = similar(hashes, small, hash_distance=2, miniature_distance=0)
    assert found.tolist() == [-1, 0, -1]


def test_of_very_many_alike_only_neighbours_are_compared(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_NEIGHBOURS", 5)
    hashes, calls = np.zeros(100, np.uint64), []

    def miniatures(numbers):
        calls.append(len(numbers))
        return np.zeros((len(numbers), 1), np.uint8)

    looks = np.arange(100, dtype=np.uint64)  # all different, for all that is told
    found = similar_to_earlier(hashes, looks, miniatures, hash_distance=0, miniature_distance=0)
    assert sum(calls) == 2 * sum(100 - ahead for ahead in range(1, 6))
    assert (found < 0).sum() == 17, "one of six that follow one another"


def test_a_crowd_of_equal_ones_is_compared_with_nobody():
    count, calls = 100_000, []

    def miniatures(numbers):
        calls.append(len(numbers))
        return np.zeros((len(numbers), 1), np.uint8)

    nothing = np.zeros(count, np.uint64)
    found = similar_to_earlier(nothing, nothing, miniatures, hash_distance=3, miniature_distance=9)
    assert found[0] == -1 and (found[1:] == 0).all() and calls == []


def test_pairs_are_looked_at_some_at_a_time(monkeypatch):
    hashes, small = draw(200)
    limits = {"hash_distance": 3, "miniature_distance": 16}
    whole = similar(hashes, small, **limits)
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 7)

    def few(numbers):
        assert len(numbers) <= 7
        return small[numbers]

    again = similar_to_earlier(hashes, looks_of(hashes, small), few, **limits)
    assert np.array_equal(whole, again)


@pytest.mark.parametrize("count", [0, 1, 500])
@pytest.mark.parametrize("most", [1, 2, 30])
def test_repeated_counts_in_order(count, most):
    values = RANDOM.integers(0, 20, count).astype(np.uint64)
    seen, expected = Counter(), []
    for value in values.tolist():
        expected.append(seen[value] >= most)
        seen[value] += 1
    assert repeated(values, most).tolist() == expected


def test_nothing_is_similar_to_nothing():
    nothing = np.empty(0, np.uint64)
    found = similar_to_earlier(
        nothing, nothing, lambda n: np.empty((len(n), 1)), hash_distance=3, miniature_distance=1
    )
    assert len(found) == 0
