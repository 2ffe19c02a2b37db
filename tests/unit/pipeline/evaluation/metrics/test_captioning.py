import json
from pathlib import Path

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from pipeline.evaluation.metrics.captioning import caption_scores
from pipeline.evaluation.metrics.cider import DocumentFrequency
from pipeline.evaluation.metrics.tokenize import tokenize


def test_texts_have_the_figures_of_the_field_from_java_tokens_on():
    """Captions as written, against pycocoevalcap on the tokens that Java made of them."""
    pairs = json.loads(Path(__file__).with_name("ptb_tokens.json").read_text())["equal"]
    pairs = [(text, tokens) for text, tokens in pairs if len(tokens) > 4][-600:]
    texts, tokens = [p[0] for p in pairs], [" ".join(p[1]) for p in pairs]
    count = 100
    truth = {i: tokens[count + 5 * i : count + 5 * i + 5] for i in range(count)}
    references = [texts[count + 5 * i : count + 5 * i + 5] for i in range(count)]
    found = {i: [tokens[i]] for i in range(count)}
    scores = caption_scores(texts[:count], references)
    assert [*scores] == ["cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"]
    assert scores["cider_d"].value == pytest.approx(
        Cider().compute_score(truth, found)[0], abs=1e-6
    )
    assert scores["rouge_l"].value == pytest.approx(
        Rouge().compute_score(truth, found)[0], abs=1e-9
    )
    for n, wanted in enumerate(Bleu(4).compute_score(truth, found, verbose=0)[0], 1):
        assert scores[f"bleu_{n}"].value == pytest.approx(wanted, abs=1e-9)
    assert 0 < scores["bleu_4"].value < scores["bleu_1"].value


def test_frequencies_may_come_from_elsewhere():
    references = [["A red cat.", "The cat"], ["A dog!"], ["A bird"]]
    frequency = DocumentFrequency.of([[tokenize(t) for t in texts] for texts in references])
    whole = caption_scores(["a red cat", "a", "b"], references)["cider_d"].per_sample
    part = caption_scores(["a red cat"], references[:1], frequency)["cider_d"].per_sample
    assert part[0] == whole[0] > 0
