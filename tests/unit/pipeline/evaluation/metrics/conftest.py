"""Random captions, and what every score has to keep."""

import numpy as np
import pytest

WORDS = [f"w{i}" for i in range(25)]


@pytest.fixture
def random():
    """Fresh numbers in every run; the seed is printed when the test fails."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture
def captions(random):
    """Makes tokens of n captions, and of one to six references each; some captions are empty."""
    likely = 1 / np.arange(1, len(WORDS) + 1)
    likely /= likely.sum()

    def one(least):
        return random.choice(WORDS, random.integers(least, 13), p=likely).tolist()

    def make(count, least=0):
        references = [[one(1) for _ in range(random.integers(1, 7))] for _ in range(count)]
        said = [one(least) for _ in range(count)]
        for i in range(0, count, 3):  # some are nearly right, or the longer n-grams never match
            said[i] = references[i][0][: random.integers(least, 14)] or said[i]
        return said, references

    return make


@pytest.fixture
def drawn(random):
    """Draws samples with replacement: their numbers, and how often each was drawn."""

    def draw(count, times=4):
        picks = [random.integers(count, size=count) for _ in range(times)]
        return picks, np.stack([np.bincount(p, minlength=count) for p in picks]).astype(float)

    return draw
