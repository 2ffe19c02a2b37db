import numpy as np
import pytest

from pipeline.evaluation.metrics.score import mean_score, ratio_score


def test_mean_leaves_out_samples_without_a_number():
    score = mean_score(np.array([1.0, np.nan, 4.0]))
    assert score.value == 2.5 and len(score) == 3 and np.isnan(score.per_sample[1])
    weights = np.array([[2.0, 1.0, 0.0], [0.0, 5.0, 0.0]])
    assert score.of_weights(weights)[0] == 1.0 and np.isnan(score.of_weights(weights)[1])


def test_ratio_is_of_the_sums_not_a_mean_of_ratios():
    score = ratio_score(np.array([1.0, 9.0]), np.array([1.0, 3.0]), transform=np.sqrt)
    assert score.value == pytest.approx(np.sqrt(10 / 4))
    assert score.per_sample.tolist() == [1.0, np.sqrt(3)]


def test_no_sample_has_no_figure():
    assert np.isnan(mean_score(np.array([])).value)
