import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from sacrebleu.metrics import BLEU

from pipeline.evaluation.metrics.bleu import bleu


def reference(said, references):
    """pycocoevalcap's figures of the corpus, and of each caption."""
    truth = {i: [" ".join(t) for t in texts] for i, texts in enumerate(references)}
    found = {i: [" ".join(t)] for i, t in enumerate(said)}
    corpus, own = Bleu(4).compute_score(truth, found, verbose=0)
    return corpus, np.array(own)


@pytest.mark.parametrize("count", [1, 2, 40, 300])
def test_equals_the_fields_scorer(captions, count):
    said, references = captions(count)
    corpus, own = reference(said, references)
    scores = bleu(said, references)
    assert [s.value for s in scores] == pytest.approx(corpus, rel=1e-9, abs=1e-15)
    assert np.stack([s.per_sample for s in scores]) == pytest.approx(own, rel=1e-9, abs=1e-15)


def test_a_resample_has_the_figure_of_that_corpus(captions, drawn):
    said, references = captions(30)
    picks, weights = drawn(30)
    found = np.stack([score.of_weights(weights) for score in bleu(said, references)])
    for i, pick in enumerate(picks):
        corpus, _ = reference([said[p] for p in pick], [references[p] for p in pick])
        assert found[:, i] == pytest.approx(corpus, rel=1e-9, abs=1e-15)


def test_equals_sacrebleu_where_every_caption_has_as_many_references(captions):
    said, references = captions(60, least=4)
    references = [(texts * 6)[:6] for texts in references]
    streams = [[" ".join(texts[i]) for texts in references] for i in range(6)]
    scorer = BLEU(tokenize="none", smooth_method="none", force=True)
    theirs = scorer.corpus_score([" ".join(t) for t in said], streams).score / 100
    assert bleu(said, references)[3].value == pytest.approx(theirs, rel=1e-7)


def test_by_hand():
    said, references = [["the", "cat", "the"]], [[["the", "cat", "sat", "down"]]]
    one, two, three, _ = bleu(said, references)
    brevity = np.exp(1 - 4 / 3)
    assert one.value == pytest.approx(2 / 3 * brevity)
    assert two.value == pytest.approx((2 / 3 * 1 / 2) ** 0.5 * brevity)
    assert three.value == pytest.approx(0, abs=1e-4)


def test_nothing_said_is_zero():
    assert [s.value for s in bleu([[]], [[["a"]]])] == [0, 0, 0, 0]


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="1 captions for 2 lists of references"):
        bleu([["a"]], [[["a"]], [["b"]]])
    with pytest.raises(ValueError, match="1 captions have no reference"):
        bleu([["a"], ["b"]], [[["a"]], []])
