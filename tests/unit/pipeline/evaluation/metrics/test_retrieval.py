import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

from pipeline.evaluation.metrics.retrieval import (
    image_text_retrieval,
    median_score,
    retrieval_scores,
)


@pytest.fixture
def made(random):
    similarity = random.normal(size=(30, 80))
    relevant = random.random((30, 80)) < 0.05
    relevant[np.arange(30), random.integers(80, size=30)] = True
    return similarity + relevant, relevant


def test_equals_torchmetrics_and_scikit_learn(made):
    similarity, relevant = made
    found = retrieval_scores(similarity, relevant)
    queries = torch.arange(30).repeat_interleave(80)
    # Positive ones: torchmetrics takes items of scores up to 0 as not relevant.
    flat = torch.tensor(np.exp(similarity)).flatten(), torch.tensor(relevant).flatten()
    for k in (1, 5, 10):
        wanted = RetrievalHitRate(top_k=k)(*flat, indexes=queries).item()
        assert found[f"recall_{k}"].value == pytest.approx(wanted, abs=1e-6)
    wanted = RetrievalMAP()(*flat, indexes=queries).item()
    assert found["map"].value == pytest.approx(wanted, abs=1e-6)
    each = [average_precision_score(r, s) for r, s in zip(relevant, similarity, strict=True)]
    assert found["map"].per_sample == pytest.approx(each)


def test_ranks_by_counting(random):
    similarity = random.integers(6, size=(25, 40)).astype(float)  # full of ties
    relevant = random.random((25, 40)) < 0.1
    relevant[:, 3] = True
    best = [
        min(1 + sum(s >= t for s, r in zip(row, right, strict=True) if not r) for t in row[right])
        for row, right in zip(similarity, relevant, strict=True)
    ]
    found = retrieval_scores(similarity, relevant)
    assert found["mean_rank"].per_sample.tolist() == best
    assert found["mean_rank"].value == pytest.approx(np.mean(best))
    assert found["median_rank"].value == np.median(best)
    assert found["recall_5"].value == np.mean(np.array(best) <= 5)


def test_all_alike_is_ranked_last():
    found = image_text_retrieval(np.zeros((4, 20)), np.repeat(np.arange(4), 5))
    assert found["text_to_image"]["mean_rank"].value == 4
    assert found["image_to_text"]["mean_rank"].value == 16
    assert found["image_to_text"]["recall_10"].value == 0


def test_both_ways_with_several_texts_of_an_image(random):
    images = random.permutation(np.repeat(np.arange(12), 5))
    similarity = random.normal(size=(12, 60))
    found = image_text_retrieval(similarity, images)
    for image, row in enumerate(similarity):
        places = np.argsort(-row).tolist()
        first = min(places.index(t) + 1 for t in np.flatnonzero(images == image))
        assert found["image_to_text"]["mean_rank"].per_sample[image] == first
    for text, column in enumerate(similarity.T):
        place = np.argsort(-column).tolist().index(images[text]) + 1
        assert found["text_to_image"]["mean_rank"].per_sample[text] == place
    assert len(found["text_to_image"]["recall_1"]) == 60


def test_perfect_similarity_is_perfect_both_ways():
    images = np.repeat(np.arange(6), 5)
    similarity = (np.arange(6)[:, None] == images).astype(float)
    for scores in image_text_retrieval(similarity, images).values():
        assert {n: s.value for n, s in scores.items()} == {
            "recall_1": 1, "recall_5": 1, "recall_10": 1, "map": 1, "mean_rank": 1, "median_rank": 1,
        }  # fmt: skip


def test_median_of_a_resample(random, drawn):
    for count in (1, 2, 7, 40):
        values = random.integers(9, size=count).astype(float)
        picks, weights = drawn(count, 6)
        wanted = [np.median(values[p]) for p in picks]
        assert median_score(values).of_weights(weights).tolist() == wanted
    assert np.isnan(median_score(np.array([])).value)


def test_a_resample_is_of_queries_against_all_items(made, drawn):
    similarity, relevant = made
    picks, weights = drawn(30)
    for name, score in retrieval_scores(similarity, relevant).items():
        again = [retrieval_scores(similarity[p], relevant[p])[name].value for p in picks]
        assert score.of_weights(weights) == pytest.approx(again)


def test_wrong_input_is_refused():
    good = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"similarity \(2, 3\) and relevant \(3, 2\)"):
        retrieval_scores(good, np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="2 queries have no relevant item"):
        retrieval_scores(good, np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="1 queries have similarity NaN"):
        retrieval_scores(np.array([[1.0, np.nan], [0, 1]]), np.eye(2, dtype=bool))
    with pytest.raises(ValueError, match="a text is of no image from 0 to 1"):
        image_text_retrieval(good, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="1 queries have no relevant item"):
        image_text_retrieval(good, np.array([0, 0, 0]))
    with pytest.raises(ValueError, match=r"image_of_text \(2,\) \[T\]"):
        image_text_retrieval(good, np.array([0, 1]))
