import time

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_average_precision

from pipeline.evaluation.metrics import classification
from pipeline.evaluation.metrics.bootstrap import interval
from pipeline.evaluation.metrics.classification import (
    accuracy_at,
    balanced_accuracy,
    classification_scores,
    mean_average_precision,
    per_class,
)


@pytest.fixture
def made(random):
    """Scores of 8 classes, better than chance, and labels; class 5 has no sample."""
    labels = random.choice([0, 1, 2, 3, 4, 6, 7], 200, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])
    scores = random.normal(size=(200, 8))
    scores[np.arange(200), labels] += 1.0
    return scores, labels


def test_equals_scikit_learn_and_torchmetrics(made):
    scores, labels = made
    found = classification_scores(scores, labels)
    for k in (1, 5):
        wanted = top_k_accuracy_score(labels, scores, k=k, labels=range(8))
        assert found[f"accuracy_{k}"].value == pytest.approx(wanted)
        theirs = multiclass_accuracy(
            torch.tensor(scores), torch.tensor(labels), 8, average="micro", top_k=k
        )
        assert found[f"accuracy_{k}"].value == pytest.approx(theirs.item())
    wanted = balanced_accuracy_score(labels, scores.argmax(1))
    assert found["balanced_accuracy"].value == pytest.approx(wanted)
    each = [average_precision_score(labels == c, scores[:, c]) for c in np.unique(labels)]
    assert found["map"].value == pytest.approx(np.mean(each))
    theirs = multiclass_average_precision(
        torch.tensor(scores).softmax(1), torch.tensor(labels), 8, average=None
    )
    softmax = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    ours = per_class(softmax, labels)
    for c in np.unique(labels):
        assert ours[c]["average_precision"] == pytest.approx(theirs[c].item(), abs=1e-5)
        assert ours[c]["samples"] == (labels == c).sum()
        right = (scores.argmax(1) == c)[labels == c].mean()
        assert ours[c]["accuracy_1"] == pytest.approx(right)
    assert 5 not in ours


def test_equal_scores_are_one_step_of_the_curve_as_in_scikit_learn(random):
    scores, labels = random.integers(4, size=(90, 3)).astype(float), random.integers(3, size=90)
    each = [average_precision_score(labels == c, scores[:, c]) for c in np.unique(labels)]
    assert mean_average_precision(scores, labels).value == pytest.approx(np.mean(each))


def test_precision_of_a_sample_is_that_of_the_list_down_to_it():
    scores = np.array([[1.0, 0], [4, 0], [3, 0], [2, 0]])
    labels = np.array([0, 1, 0, 1])
    own = mean_average_precision(scores, labels).per_sample
    assert own[[0, 2]].tolist() == [2 / 4, 1 / 2] and own[[1, 3]].tolist() == [2 / 4, 2 / 4]


def test_all_scores_alike_are_never_right():
    scores, labels = np.zeros((6, 4)), np.array([0, 1, 2, 3, 0, 1])
    assert accuracy_at(scores, labels, 1).value == accuracy_at(scores, labels, 3).value == 0
    assert accuracy_at(scores, labels, 4).value == 1
    assert balanced_accuracy(scores, labels).value == 0


def test_a_resample_has_the_figure_of_those_samples(made, drawn):
    scores, labels = made
    picks, weights = drawn(200, 3)
    for name, score in classification_scores(scores, labels).items():
        found = score.of_weights(weights)
        for value, pick in zip(found, picks, strict=True):
            again = classification_scores(scores[pick], labels[pick])[name].value
            assert value == pytest.approx(again, abs=1e-12), name


def test_pieces_do_not_matter_and_many_classes_take_no_longer(random, monkeypatch):
    scores, labels = random.normal(size=(2000, 1000)), random.integers(1000, size=2000)
    start = time.process_time()
    whole = interval(mean_average_precision(scores, labels), resamples=200)
    assert time.process_time() - start < 20  # measured: 1 s
    monkeypatch.setattr(classification, "SAMPLES_AT_ONCE", 77)
    again = mean_average_precision(scores, labels)
    assert again.value == pytest.approx(whole.value, rel=1e-12)
    one, many = mean_average_precision(scores[:, :1], labels * 0), np.ones((1, 2000))
    assert one.of_weights(many)[0] == 1


def test_top_5_of_few_classes_is_left_out(random):
    found = classification_scores(random.normal(size=(9, 5)), random.integers(5, size=9))
    assert set(found) == {"accuracy_1", "balanced_accuracy", "map"}


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"scores \(3,\) are \[N, C\]"):
        accuracy_at(np.zeros(3), np.zeros(3), 1)
    with pytest.raises(ValueError, match="labels 0 to 2 for 2 classes"):
        accuracy_at(np.zeros((2, 2)), np.array([0, 2]), 1)
    with pytest.raises(ValueError, match="1 samples have a score that is NaN"):
        accuracy_at(np.array([[0.0, np.nan], [1, 2]]), np.array([0, 1]), 1)
