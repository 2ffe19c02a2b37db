"""Random order without storing it: a keyed bijection of range(n), for whole arrays at a time."""

import hashlib

import numpy as np

ROUNDS = 8  # with 4, places of a small range differ measurably in how likely they are
_GOLDEN = 0x9E3779B97F4A7C15


def mix(value: np.ndarray) -> np.ndarray:
    """Scramble uint64 values; a bijection. Source: the finaliser of SplitMix64 (Steele et al. 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hash_key(*parts: int | str | np.ndarray) -> np.ndarray:
    """One uint64 for every combination of the parts, which broadcast.

    Numbers and texts alone decide it: not the process, the platform or the version of a library.
    """
    key = np.ones(1, np.uint64)
    for part in parts:
        if isinstance(part, str):
            part = int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
        if isinstance(part, int):
            part = np.array([part % 2**64], np.uint64)
        key = mix(key * np.uint64(_GOLDEN) + np.asarray(part).astype(np.uint64))
    return key


def permute(index: np.ndarray, size: np.ndarray | int, key: np.ndarray) -> np.ndarray:
    """Where `index` goes in the bijection of range(size) that `key` chooses.

    Args:
        index: int64, each in range(size).
        size: of the range, per index or one for all.
        key: uint64, per index or one for all, of `hash_key`.

    Returns:
        int64, in range(size).

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002): a Feistel network over the
        next even power of two, walked until it is inside the range.
    """
    index, size, key = np.broadcast_arrays(index, size, key)
    value, bound = index.astype(np.uint64), size.astype(np.uint64)
    # frexp gives the number of bits; sizes stay far below 2**53.
    bits = np.frexp((size - 1).astype(np.float64))[1]
    half = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    round_keys = [mix(key + np.uint64((r + 1) * _GOLDEN % 2**64)) for r in range(ROUNDS)]
    result = np.zeros_like(value)
    walking = np.arange(value.size)
    while walking.size:
        left, right = value >> half, value & mask
        for round_key in round_keys:
            left, right = right, left ^ (mix(right + round_key) & mask)
        value = (left << half) | right
        inside = value < bound
        result[walking[inside]] = value[inside]
        outside = ~inside
        walking, value, bound = walking[outside], value[outside], bound[outside]
        half, mask = half[outside], mask[outside]
        round_keys = [k[outside] for k in round_keys]
    return result.astype(np.int64)
