"""Answers to questions about images, by VQAv2's accuracy."""

import numpy as np

from data_prep.errors import ConfigError, Problem
from pipeline.evaluation.asker import CONTROLLED, Asker
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.layouts.record import Records
from pipeline.evaluation.metrics.score import mean_score
from pipeline.evaluation.metrics.vqa import vqa_accuracy
from pipeline.evaluation.outcome import Outcome, rows_of
from pipeline.prompts import VQA_FORM


def ask(asker: Asker, records: Records, config: EvaluationConfig) -> dict[str, list[str]]:
    """Answers by condition; every rank must call it.

    Raises:
        ConfigError: the records ask nothing.
    """
    check_questions(records)
    asks = [[r.image, VQA_FORM.format(question=r.question)] for r in records.items]
    said = asker.controlled(asks, "answers")
    return {condition: [first_line(text) for text in texts] for condition, texts in said.items()}


def judge(said: dict[str, list[str]], records: Records, config: EvaluationConfig) -> Outcome:
    """VQA accuracy, also of each kind of question."""
    truths = [list(record.texts) for record in records.items]
    groups = [record.image_key for record in records.items]
    outcome = Outcome(config.resamples, groups, rows=rows_of(records.items, said))
    scores = {condition: vqa_accuracy(said[condition], truths) for condition in CONTROLLED}
    for condition, score in scores.items():
        outcome.add("vqa_accuracy", score, condition)
    outcome.compare("vqa_accuracy", scores[""], scores["zero_image"], "zero_image")
    kinds = sorted({record.kind for record in records.items if record.kind})
    for kind in kinds:
        values = scores[""].per_sample.copy()
        values[[record.kind != kind for record in records.items]] = np.nan
        name = kind.replace("/", "_").replace(" ", "_")
        outcome.add("vqa_accuracy", mean_score(values), f"kind_{name}")
    outcome.wrong_by = "vqa_accuracy"
    return outcome


def first_line(text: str) -> str:
    """An answer ends where its line does."""
    return text.strip().split("\n")[0].strip()


def check_questions(records: Records) -> None:
    """Refuse records that ask nothing.

    Raises:
        ConfigError: likewise.
    """
    if any(record.question is None for record in records.items):
        rule = f"has questions, for suite vqa; layout {records.layout} has none"
        remedy = "set evaluation.data with questions and annotations in VQAv2's layout"
        raise ConfigError([Problem("evaluation.data", records.layout, rule, remedy)])
