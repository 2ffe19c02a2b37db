"""Which samples show what an earlier one shows, over any number of datasets.

Two images are similar when their hashes differ in few bits and their miniatures in few levels. Hashes
that differ in at most d bits agree in at least a of d + a bands; those that agree in the same a bands lie
beside each other once the hashes are sorted by these, and only they are compared. The more hashes there
are, the more bands have to agree. Of very many that agree the comparison ends MOST_NEIGHBOURS behind each.

Source: Manku et al. 2007, "Detecting Near-Duplicates for Web Crawling", section 3.
"""

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

from data_prep.image.perceptual import HASH_BITS

MOST_NEIGHBOURS = 1000
# Up to so many hashes one band has to agree, then two, then three: more sorting, fewer comparisons.
FEW_ENOUGH = (1 << 18, 1 << 27)
# Of thin lines on white little is left in a miniature: they may differ in a quarter of their own contrast,
# yet in as much as a copy that is encoded anew does.
CONTRAST_SHARE, LEAST_LEVELS = 4, 2
_PAIRS_AT_ONCE = 1 << 16
# Miniatures, uint8 [n, ...], of n samples by their numbers.
Miniatures = Callable[[np.ndarray], np.ndarray]


def similar_to_earlier(
    hashes: np.ndarray,
    looks: np.ndarray,
    miniatures: Miniatures,
    *,
    hash_distance: int,
    miniature_distance: int,
    fixed: int = 0,
    among_rest: bool = True,
) -> np.ndarray:
    """Which samples are similar to an earlier one that stays; int64, the number of one such, or -1.

    In order: a sample stays unless it is similar to one that stays. That one may itself be unlike a
    third that the sample is similar to, so chains are not drawn together.

    Args:
        hashes: uint64 of each.
        looks: uint64 of each, equal for those whose hash and miniature are equal.
        miniatures: of some of them.
        hash_distance: bits that may differ.
        miniature_distance: levels that may differ anywhere, at most.
        fixed: so many of the first stay in any case.
        among_rest: whether those behind them are held against each other too.
    """
    # Of equal ones the first stands for all: a crowd of placeholders is one sample here.
    _, firsts, which = np.unique(looks, return_index=True, return_inverse=True)
    numbers = np.sort(firsts)
    later, earlier = _similar_pairs(
        hashes[numbers],
        lambda some: miniatures(numbers[some]),
        hash_distance,
        miniature_distance,
    )
    found = np.full(len(hashes), -1, np.int64)
    for one, two in zip(numbers[later].tolist(), numbers[earlier].tolist(), strict=True):
        stays = two < fixed or (among_rest and found[two] < 0)
        if one >= fixed and found[one] < 0 and stays:
            found[one] = two
    first = firsts[which]  # of each the one that stands for it
    copies = (first != np.arange(len(hashes))) & (np.arange(len(hashes)) >= fixed)
    stays = (found[first] < 0) & ((first < fixed) | among_rest)
    found[copies] = np.where(stays, first, found[first])[copies]
    return found


def repeated(values: np.ndarray, most: int) -> np.ndarray:
    """Which of the values have occurred so many times before, bool."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(values) else order
    sizes = np.diff(np.r_[starts, len(values)])
    rank = np.arange(len(values)) - np.repeat(starts, sizes)
    found = np.zeros(len(values), bool)
    found[order] = rank >= most
    return found


def _similar_pairs(
    hashes: np.ndarray, miniatures: Miniatures, hash_distance: int, miniature_distance: int
) -> tuple[np.ndarray, np.ndarray]:
    """(later, earlier) of all similar pairs, in order of the later, then of the earlier."""
    found = [np.empty((0, 2), np.int64)]
    for pairs in _near_pairs(hashes, hash_distance):
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[start : start + _PAIRS_AT_ONCE]
            one, two = (miniatures(some[:, side]).astype(np.int16) for side in (0, 1))
            found.append(some[_look_alike(one, two, miniature_distance)])
    pairs = np.concatenate(found)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return pairs[:, 0], pairs[:, 1]


def _look_alike(one: np.ndarray, two: np.ndarray, most: int) -> np.ndarray:
    """Bool of each pair of miniatures, int16 [n, ...]; faint pictures may differ in less."""
    one, two = one.reshape(len(one), -1), two.reshape(len(two), -1)
    contrast = np.minimum(np.ptp(one, axis=1), np.ptp(two, axis=1))
    allowed = np.minimum(np.maximum(contrast // CONTRAST_SHARE, LEAST_LEVELS), most)
    return np.abs(one - two).max(axis=1) <= allowed


def _near_pairs(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """int64 [n, 2] of (later, earlier) whose hashes differ in few bits, each once."""
    alike = 1 + sum(len(hashes) > most for most in FEW_ENOUGH)
    edges = np.linspace(0, HASH_BITS, distance + alike + 1).astype(int)
    bands = list(zip(edges.tolist(), edges[1:].tolist(), strict=False))
    before: list[np.uint64] = []  # bits of the bands that agreed in earlier rounds
    for chosen in combinations(bands, alike):
        width = sum(high - low for low, high in chosen)
        turned = _put_first(hashes, [*chosen, *(band for band in bands if band not in chosen)])
        order = np.argsort(turned, kind="stable")
        turned = turned[order]
        agreed = turned >> np.uint64(HASH_BITS - width) if width < HASH_BITS else turned
        left = np.arange(len(order))
        for ahead in range(1, MOST_NEIGHBOURS + 1):
            left = left[left + ahead < len(order)]
            left = left[agreed[left] == agreed[left + ahead]]
            if not len(left):
                break
            near = left[np.bitwise_count(turned[left] ^ turned[left + ahead]) <= distance]
            one, two = order[near], order[near + ahead]
            apart = hashes[one] ^ hashes[two]
            new = np.ones(len(near), bool)
            for bits in before:
                new &= apart & bits != 0
            yield np.sort(np.stack([one[new], two[new]], axis=1), axis=1)[:, ::-1]
        before.append(
            np.uint64(sum((1 << (64 - low)) - (1 << (64 - high)) for low, high in chosen))
        )


def _put_first(hashes: np.ndarray, bands: list[tuple[int, int]]) -> np.ndarray:
    """The hashes with their bands, as (first bit, behind the last), in this order from the highest bit."""
    found = np.zeros_like(hashes)
    for low, high in bands:
        width, shift = np.uint64(high - low), np.uint64(HASH_BITS - high)
        mask = np.uint64((1 << (high - low)) - 1)
        found = (found << width if high - low < HASH_BITS else found) | (hashes >> shift & mask)
    return found
