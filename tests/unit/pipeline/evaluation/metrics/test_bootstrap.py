import time

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.metrics import bootstrap
from pipeline.evaluation.metrics.bleu import bleu
from pipeline.evaluation.metrics.bootstrap import interval, paired_interval
from pipeline.evaluation.metrics.cider import cider_d
from pipeline.evaluation.metrics.classification import classification_scores
from pipeline.evaluation.metrics.score import mean_score, ratio_score


def test_bounds_are_those_of_scipy(random):
    values = random.exponential(size=300)
    ours = interval(mean_score(values), resamples=20_000, seed=1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2)
    width = ours.high - ours.low
    assert ours.value == pytest.approx(values.mean())
    # Bounds of 20,000 resamples vary by about a fiftieth of the width.
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)


def test_the_true_value_is_covered_as_often_as_by_scipy(random):
    times, ours, theirs = 400, 0, 0
    for _ in range(times):
        tops, bottoms = random.gamma(2, 3, 80), random.integers(5, 20, 80).astype(float)
        true = 6 / 12
        found = interval(
            ratio_score(tops, bottoms), resamples=400, seed=int(random.integers(2**31))
        )
        ours += found.low <= true <= found.high

        def ratio(a, b, axis=-1):
            return a.sum(axis) / b.sum(axis)

        bounds = stats.bootstrap(
            (tops, bottoms), ratio, n_resamples=400, paired=True, method="percentile", rng=random
        ).confidence_interval
        theirs += bounds.low <= true <= bounds.high
    # 95% less what 80 skewed samples cost, give or take four standard deviations.
    assert abs(ours - theirs) / times < 0.03
    assert 0.88 < ours / times < 0.985


def test_paired_samples_of_one_hardness_give_a_narrower_difference(random):
    hard = random.normal(size=500)
    first, second = hard + 0.1, hard + random.normal(size=500) * 0.1
    paired = paired_interval(mean_score(first), mean_score(second))
    assert paired.value == pytest.approx(first.mean() - second.mean())
    alone = interval(mean_score(first))
    assert 0 < paired.high - paired.low < 0.2 * (alone.high - alone.low)
    assert paired.low <= paired.value <= paired.high
    same = paired_interval(mean_score(first), mean_score(first))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_samples_of_one_image_are_drawn_together(random):
    # Ten questions about each image are answered alike: there are 60 samples, not 600.
    values = np.repeat(random.normal(size=60), 10)
    images = np.repeat(np.arange(60), 10)
    score = mean_score(values)
    together = interval(score, groups=images.tolist())
    apart = interval(score)
    alone = interval(mean_score(values[::10]))
    assert together.high - together.low > 2 * (apart.high - apart.low)
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.05)
    order = random.permutation(600)
    assert interval(mean_score(values[order]), groups=images[order].tolist()).value == (
        pytest.approx(together.value)
    )


def test_seeds_decide_and_pieces_do_not(random, monkeypatch):
    score = mean_score(random.normal(size=70))
    whole = interval(score, seed=3)
    assert interval(score, seed=3) == whole != interval(score, seed=4)
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", 70 * 13)
    assert interval(score, seed=3) == whole


def test_level_is_the_share_between_the_bounds(random):
    score = mean_score(random.normal(size=400))
    wide, narrow = (interval(score, level=level, resamples=4000) for level in (0.95, 0.5))
    ratio = (wide.high - wide.low) / (narrow.high - narrow.low)
    assert ratio == pytest.approx(stats.norm.ppf(0.975) / stats.norm.ppf(0.75), rel=0.1)


def test_without_a_number_there_are_no_bounds():
    for values in ([], [np.nan, np.nan]):
        found = interval(mean_score(np.array(values)))
        assert np.isnan([found.value, found.low, found.high]).all()
    # A resample without any sample that counts is left out.
    found = interval(mean_score(np.array([np.nan, 2.0])))
    assert (found.value, found.low, found.high) == (2, 2, 2)


def test_wrong_input_is_refused():
    score = mean_score(np.zeros(3))
    with pytest.raises(ValueError, match="2 groups for 3 samples"):
        interval(score, groups=["a", "b"])
    with pytest.raises(ValueError, match="3 samples cannot be paired with 4"):
        paired_interval(score, mean_score(np.zeros(4)))


def test_a_thousand_resamples_of_five_thousand_samples_take_seconds(captions, random):
    said, references = captions(500)
    said, references = said * 10, references * 10
    scores = [*bleu(said, references), cider_d(said, references)]
    labels = random.integers(10, size=5000)
    scores += classification_scores(random.normal(size=(5000, 10)), labels).values()
    start = time.process_time()
    for score in scores:
        interval(score)
    assert time.process_time() - start < 30  # measured: 3 s on one core
