"""Captions of images, and of the same prompts with black ones, against people's."""

import numpy as np

from pipeline.evaluation.asker import CONTROLLED, Asker
from pipeline.evaluation.attributes import attribute_scores, chance
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.layouts.record import Records
from pipeline.evaluation.metrics.captioning import caption_scores
from pipeline.evaluation.metrics.score import mean_score
from pipeline.evaluation.outcome import Outcome, rows_of
from pipeline.evaluation.results import Figure


def ask(asker: Asker, records: Records, config: EvaluationConfig) -> dict[str, list[str]]:
    """Captions by condition; every rank must call it."""
    asks = [[record.image] for record in records.items]
    return asker.controlled(asks, "captions", num_beams=config.num_beams)


def judge(said: dict[str, list[str]], records: Records, config: EvaluationConfig) -> Outcome:
    """Figures of the captions."""
    references = [list(record.texts) for record in records.items]
    groups = [record.image_key for record in records.items]
    outcome = Outcome(config.resamples, groups, rows=rows_of(records.items, said))
    scores = {c: _scores(said[c], references, config) for c in CONTROLLED}
    for name in scores[""]:
        for condition in CONTROLLED:
            outcome.add(name, scores[condition][name], condition)
    for name in scores[""]:
        outcome.compare(name, scores[""][name], scores["zero_image"][name], "zero_image")
    if config.attributes == "scenes":
        from data_prep.examples.scenes import parse_caption

        blind = chance([texts[0] for texts in references], parse_caption)
        outcome.figures.append(
            Figure(
                name="attribute_accuracy", condition="chance", value=blind, samples=len(references)
            )
        )
        outcome.notes.append(
            f"The best constant answer has an attribute accuracy of {blind:.3f}: the most that can be had "
            "without looking."
        )
    outcome.wrong_by = "cider_d"
    return outcome


def _scores(captions: list[str], references: list[list[str]], config: EvaluationConfig) -> dict:
    scores = caption_scores(captions, references)
    exact = [c in texts for c, texts in zip(captions, references, strict=True)]
    scores["exact_match"] = mean_score(np.array(exact, np.float64))
    if config.attributes == "scenes":
        from data_prep.examples.scenes import parse_caption

        scores |= attribute_scores(captions, [t[0] for t in references], parse_caption)
    return scores
