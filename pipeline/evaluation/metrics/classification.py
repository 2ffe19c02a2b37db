"""Accuracy@K, balanced accuracy and mean average precision of scored classes."""

import numpy as np

from pipeline.evaluation.metrics.score import Score, mean_score

SAMPLES_AT_ONCE = 512


def classification_scores(scores: np.ndarray, labels: np.ndarray) -> dict[str, Score]:
    """All figures of a classification: ``accuracy_1``, ``accuracy_5``, ``balanced_accuracy``, ``map``.

    Args:
        scores: ``[N, C]``, of each sample and class, such as log-likelihoods; the higher the likelier.
        labels: int ``[N]``, 0 to C - 1.

    Raises:
        ValueError: shapes or labels do not fit, or a score is NaN.
    """
    scores, labels = _checked(scores, labels)
    found = {f"accuracy_{k}": accuracy_at(scores, labels, k) for k in (1, 5) if k < scores.shape[1]}
    found["balanced_accuracy"] = balanced_accuracy(scores, labels)
    found["map"] = mean_average_precision(scores, labels)
    return found


def accuracy_at(scores: np.ndarray, labels: np.ndarray, k: int) -> Score:
    """Share of samples whose class is among the k highest scores.

    A class of the same score as the right one counts as before it: a model that gives all classes
    the same score is never right. torchmetrics and scikit-learn break ties by the classes' order.
    """
    return mean_score(ranks(*_checked(scores, labels)) < k)


def balanced_accuracy(scores: np.ndarray, labels: np.ndarray) -> Score:
    """Mean over the classes that have samples of the share of theirs that is right (recall).

    Ties are as in `accuracy_at`. Source: as ``sklearn.metrics.balanced_accuracy_score``.
    """
    scores, labels = _checked(scores, labels)
    right = (ranks(scores, labels) == 0).astype(np.float64)
    members = (labels[:, None] == np.unique(labels)).astype(np.float64)

    def figure(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            recall = (weights * right) @ members / (weights @ members)
        return _mean_of_numbers(recall)

    return Score(figure, right)


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> Score:
    """Mean over the classes that have samples of the average precision of all samples' scores for it.

    The value of a sample by itself is the precision of its class's list down to it; a class's average
    precision is the mean of these over its samples. Samples of equal score stand at one place. Resamples
    hold samples twice, which pulls the figure up: of few samples a class the interval is too high.

    Source: Manning et al., Introduction to Information Retrieval (2008), section 8.4, without
    interpolation, as ``sklearn.metrics.average_precision_score(average="macro")`` without the classes
    that have no sample.
    """
    scores, labels = _checked(scores, labels)
    members = (labels[:, None] == np.unique(labels)).astype(np.float64)

    def figure(weights: np.ndarray) -> np.ndarray:
        precision = weights * _precisions(scores, labels, weights)
        with np.errstate(invalid="ignore"):
            return _mean_of_numbers(precision @ members / (weights @ members))

    return Score(figure, _precisions(scores, labels, np.ones((1, len(labels))))[0])


def per_class(scores: np.ndarray, labels: np.ndarray) -> dict[int, dict[str, float]]:
    """For every class that has samples: ``samples``, ``accuracy_1`` of these, ``average_precision``."""
    scores, labels = _checked(scores, labels)
    right = ranks(scores, labels) == 0
    precision = _precisions(scores, labels, np.ones((1, len(labels))))[0]
    return {
        int(c): {
            "samples": int((labels == c).sum()),
            "accuracy_1": float(right[labels == c].mean()),
            "average_precision": float(precision[labels == c].mean()),
        }
        for c in np.unique(labels)
    }


def _precisions(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of each sample: the share of its class among the samples that score as high for that class.

    Args:
        scores: ``[N, C]``.
        labels: ``[N]``.
        weights: whole numbers ``[R, N]``.

    Returns:
        ``[R, N]``; 0 where a sample has no weight.
    """
    # A comparison of every two samples and a matrix product: what it costs does not depend on the
    # number of classes. Sums of whole numbers below 2**24 are exact in float32.
    weights = weights.astype(np.float32)
    found = np.zeros(weights.shape)
    for start in range(0, len(labels), SAMPLES_AT_ONCE):
        part = np.arange(start, min(start + SAMPLES_AT_ONCE, len(labels)))
        as_high = scores[:, labels[part]] >= scores[part, labels[part]]
        listed = weights @ as_high.astype(np.float32)
        hits = np.empty_like(listed)
        for c in np.unique(labels[part]):
            here, members = labels[part] == c, labels == c
            hits[:, here] = weights[:, members] @ as_high[members][:, here].astype(np.float32)
        found[:, part] = np.divide(hits, listed, out=np.zeros_like(listed, float), where=listed > 0)
    return found


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int ``[N]``: how many other classes score at least as high as the right one."""
    right = np.take_along_axis(scores, labels[:, None], axis=1)
    return (scores >= right).sum(axis=1) - 1


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.int64)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape} are [N, C] and labels {labels.shape} are [N]")
    if len(labels) and (labels.min() < 0 or labels.max() >= scores.shape[1]):
        raise ValueError(f"labels {labels.min()} to {labels.max()} for {scores.shape[1]} classes")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).any(1).sum())} samples have a score that is NaN")
    return scores, labels


def _mean_of_numbers(values: np.ndarray) -> np.ndarray:
    """Mean of the last axis without NaN; NaN where all of it is."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(-1) / there.sum(-1)
