import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from pipeline.evaluation.metrics.cider import DocumentFrequency, cider_d


@pytest.mark.parametrize("count", [1, 2, 3, 40, 300])
def test_equals_the_fields_scorer(captions, count):
    said, references = captions(count)
    truth = {i: [" ".join(t) for t in texts] for i, texts in enumerate(references)}
    mean, own = Cider().compute_score(truth, {i: [" ".join(t)] for i, t in enumerate(said)})
    score = cider_d(said, references)
    assert score.value == pytest.approx(mean, abs=1e-9)
    assert score.per_sample == pytest.approx(own, abs=1e-9)


def test_frequencies_of_a_larger_set_make_a_part_comparable(captions):
    said, references = captions(50)
    whole = cider_d(said, references)
    part = cider_d(said[:7], references[:7], DocumentFrequency.of(references))
    assert part.per_sample == pytest.approx(whole.per_sample[:7], abs=1e-12)
    assert cider_d(said[:7], references[:7]).value != pytest.approx(part.value)


def test_by_hand():
    # Two images; "a" is in both, so weighs nothing; of one-word texts no longer n-gram is there.
    frequency = DocumentFrequency.of([[["a"], ["b"]], [["a"], ["c"]]])
    assert frequency.images == 2 and frequency.containing[("a",)] == 2
    score = cider_d([["b"], ["a"]], [[["b"]], [["a"]]], frequency)
    assert score.per_sample == pytest.approx([10 / 4, 0])
    # The penalty is of the numbers of bigrams, 1 and 3, with sigma 6; tokens that no one knows weigh
    # log 2, and those repeated are clipped to how often the reference has them.
    score = cider_d([["b", "b"]], [[["b", "x", "y", "z"]]], frequency)
    one = (1 * 1) / (2 * 4**0.5)
    assert score.value == pytest.approx(10 / 4 * one * np.exp(-(2**2) / (2 * 6**2)))


def test_the_right_words_in_full_are_ten(captions):
    _, references = captions(30)
    said = [max(texts, key=len) for texts in references]
    long = [i for i, tokens in enumerate(said) if len(tokens) >= 4]
    own = cider_d(said, [[t] for t in said]).per_sample
    assert own.max() <= 10 + 1e-9 and own[long].mean() > 5


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="2 captions for 1 lists of references"):
        cider_d([["a"], ["b"]], [[["a"]]])
