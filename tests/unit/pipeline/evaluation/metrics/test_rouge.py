import numpy as np
import pytest
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from pipeline.evaluation.metrics.rouge import BETA, common_length, rouge_l


@pytest.mark.parametrize("count", [1, 100])
def test_equals_the_fields_scorer(captions, count):
    said, references = captions(count)
    truth = {i: [" ".join(t) for t in texts] for i, texts in enumerate(references)}
    mean, own = Rouge().compute_score(truth, {i: [" ".join(t)] for i, t in enumerate(said)})
    score = rouge_l(said, references)
    assert score.value == pytest.approx(mean, rel=1e-12)
    assert score.per_sample == pytest.approx(own, rel=1e-12)


def test_equals_rouge_score_of_one_reference_but_for_beta(captions):
    class Split:
        tokenize = staticmethod(str.split)

    said, references = captions(50, least=1)
    scorer = RougeScorer(["rougeL"], tokenizer=Split())
    for tokens, texts in zip(said, references, strict=True):
        found = scorer.score(" ".join(texts[0]), " ".join(tokens))["rougeL"]
        p, r = found.precision, found.recall
        wanted = (1 + BETA**2) * p * r / (r + BETA**2 * p) if p * r else 0.0
        assert rouge_l([tokens], [texts[:1]]).value == pytest.approx(wanted, rel=1e-12)


def test_common_subsequence_by_trying_all(random):
    def every(a, b):
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + every(a[1:], b[1:])
        return max(every(a[1:], b), every(a, b[1:]))

    for _ in range(60):
        a, b = (random.integers(3, size=random.integers(0, 8)).tolist() for _ in range(2))
        assert common_length(a, b) == every(a, b) == common_length(b, a)


def test_right_is_one_and_nothing_is_zero():
    texts = [["a", "b", "c"]]
    assert rouge_l(texts, [texts]).value == 1 and rouge_l([[]], [texts]).value == 0
    assert np.isnan(rouge_l([], []).value)
