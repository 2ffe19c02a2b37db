"""Every prefix holds each source's share to within one sample, and weights may change on the way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.mixing import LONGEST, Mixture, whole_shares

WEIGHTS = st.lists(
    st.integers(1, 999).map(lambda w: w / 1000) | st.integers(1, 20).map(float),
    min_size=1,
    max_size=6,
)


def names(count: int) -> list[str]:
    return [f"s{i}" for i in range(count)]


def mixture(*events: tuple[int, list[float]]) -> Mixture:
    log = [(at, dict(zip(names(len(w)), w, strict=True))) for at, w in events]
    return Mixture(names(max(len(w) for _, w in events)), log)


@settings(max_examples=30)
@given(WEIGHTS)
def test_every_prefix_holds_each_share_within_a_sample(weights):
    sources, ranks = mixture((0, weights)).locate(np.arange(3000))
    drawn = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    shares = np.array(whole_shares(weights)) / sum(whole_shares(weights))
    np.testing.assert_allclose(
        shares, np.array(weights) / sum(weights), atol=len(weights) / LONGEST
    )
    assert np.abs(drawn - shares * np.arange(1, 3001)[:, None]).max() < 1
    for source in range(len(weights)):
        own = ranks[sources == source]
        assert own.tolist() == list(range(len(own))), "every sample of a source in turn"


@settings(max_examples=20)
@given(WEIGHTS, WEIGHTS, st.integers(1, 500))
def test_a_change_of_weights_loses_and_repeats_nothing(before, after, at):
    size = min(len(before), len(after))
    mixed = mixture((0, before[:size]), (at, after[:size]))
    sources, ranks = mixed.locate(np.arange(2000))
    plain = mixture((0, before[:size])).locate(np.arange(at))
    assert (sources[:at] == plain[0]).all() and (ranks[:at] == plain[1]).all()
    for source in range(size):
        own = ranks[sources == source]
        assert own.tolist() == list(range(len(own)))
    shares = np.array(whole_shares(after[:size])) / sum(whole_shares(after[:size]))
    drawn = np.cumsum(sources[at:, None] == np.arange(size), axis=0)
    assert np.abs(drawn - shares * np.arange(1, len(drawn) + 1)[:, None]).max() < 1
    assert mixed.counts(1500).tolist() == np.bincount(sources[:1500], minlength=size).tolist()


def test_a_source_may_join_and_rest():
    log = [(0, {"s0": 1.0}), (10, {"s0": 1.0, "s1": 1.0}), (20, {"s1": 2.0})]
    sources, _ = Mixture(["s0", "s1"], log).locate(np.arange(30))
    assert set(sources[:10]) == {0} and set(sources[20:]) == {1}
    assert (sources[10:20] == 0).sum() == 5


def test_far_positions_equal_the_walk_there():
    mixed = mixture((0, [0.2, 0.03, 1.0]))
    far = 10**12 + 7
    assert (
        mixed.locate(np.array([far]))[1][0]
        == mixed.counts(far)[mixed.locate(np.array([far]))[0][0]]
    )


def test_weights_are_read_as_decimals():
    assert whole_shares([1.0, 0.2, 0.2, 0.03]) == [100, 20, 20, 3]
    assert whole_shares([0.1, 0.2, 0.0]) == [1, 2, 0]


def test_weights_that_fit_no_short_cycle_are_rounded_and_none_is_lost():
    shares = whole_shares([1.0, 1e-9, 1 / 3])
    assert sum(shares) == LONGEST and shares[1] == 1


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ([], "begins at position 0"),
        ([(5, {"a": 1.0})], "begins at position 0"),
        ([(0, {"a": 1.0, "b": 1.0})], "sources that are not there: b"),
    ],
)
def test_a_log_that_does_not_fit_is_refused(log, message):
    with pytest.raises(ValueError, match=message):
        Mixture(["a"], log)
