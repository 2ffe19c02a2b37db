"""The same task with 0, 4, 8, ... examples in the prompt, images included."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from data_prep.errors import ConfigError, Problem
from pipeline.evaluation.asker import Ask, Asker
from pipeline.evaluation.choices import weigh_choices
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.demonstrations import draw_random, nearest
from pipeline.evaluation.layouts.record import Record, Records
from pipeline.evaluation.metrics.captioning import caption_scores
from pipeline.evaluation.metrics.classification import classification_scores
from pipeline.evaluation.metrics.score import Score
from pipeline.evaluation.metrics.vqa import vqa_accuracy
from pipeline.evaluation.outcome import Outcome, rows_of
from pipeline.evaluation.suites.vqa import first_line
from pipeline.prompts import VQA_FORM


@dataclass
class Told:
    """What came out: by condition the texts said, or the scores ``[N, C]`` of classes.

    Attributes:
        said: of captions and answers.
        scores: of classes.
        shortened: by condition, queries of which examples were left out for want of positions.
    """

    said: dict[str, list[str]]
    scores: dict[str, np.ndarray]
    shortened: dict[str, int]


def task_of(records: Records) -> str:
    """``vqa`` where questions are asked, ``classification`` where there are classes, else ``captioning``."""
    if all(record.question is not None for record in records.items):
        return "vqa"
    return "classification" if records.class_names else "captioning"


def ask(
    asker: Asker, records: Records, config: EvaluationConfig, pool: Records | None = None
) -> Told:
    """Ask with every number of examples and every way of choosing them; every rank must call it.

    Args:
        asker: of the model.
        records: queries.
        config: section `evaluation`.
        pool: examples; None takes the queries themselves, each without its own image.

    Raises:
        ConfigError: there are fewer examples than shots.
    """
    examples = (pool or records).items
    check_shots(records, examples, config)
    names = [config.class_form.format(name=name) for name in records.class_names]
    vectors: tuple[np.ndarray, np.ndarray] | None = None
    told = Told({}, {}, {})
    task = task_of(records)
    behind = asker.max_new_tokens
    if task == "classification":
        behind = max(asker.length([name]) for name in names) - 1 + len(asker.text.end_ids)
    for selection in config.selections:
        for shots in config.shots:
            if shots == 0 and "shots_0" in told.shortened:
                continue
            if selection == "rices" and shots and vectors is None:
                own = asker.image_features([r.image for r in records.items], "features")
                others = own
                if pool is not None:
                    others = asker.image_features([r.image for r in examples], "features")
                vectors = own, others
            condition = "shots_0" if shots == 0 else f"shots_{shots}_{selection}"
            asks, cut = [], 0
            for number, query in enumerate(records.items):
                if selection == "rices" and shots:
                    chosen = nearest(query, vectors[0][number], examples, vectors[1], shots)
                else:
                    chosen = draw_random(query, examples, shots)
                shown = [examples[n] for n in chosen]
                prompt, left_out = _fit(asker, shown, query, task, config, behind)
                cut += left_out > 0
                asks.append(prompt)
            told.shortened[condition] = cut
            if task == "classification":
                nats, _ = weigh_choices(asker, asks, names, name=condition.replace("_", " "))
                told.scores[condition] = -nats
            else:
                said = asker.answers(asks, name=condition.replace("_", " "))
                told.said[condition] = [first_line(t) if task == "vqa" else t for t in said]
    return told


def judge(told: Told, records: Records, config: EvaluationConfig) -> Outcome:
    """The task's figures by condition, and what examples gain."""
    groups = [record.image_key for record in records.items]
    said = told.said or {
        condition: [records.class_names[c] for c in scores.argmax(1)]
        for condition, scores in told.scores.items()
    }
    outcome = Outcome(config.resamples, groups, rows=rows_of(records.items, said))
    scores = {c: _scores(c, told, records) for c in told.shortened}
    first = next(iter(scores))
    for name in scores[first]:
        for condition, found in scores.items():
            outcome.add(name, found[name], condition)
    outcome.wrong_by = f"{next(iter(scores[first]))}_{first}"
    for condition, cut in told.shortened.items():
        if cut:
            outcome.notes.append(
                f"{condition}: of {cut} of {len(records)} queries the first examples are left out, since "
                "the language model has no positions for all"
            )
    return outcome


def demonstration(record: Record, task: str, config: EvaluationConfig) -> str:
    """The text behind an example's image: a caption, a question with its answer, or a class."""
    if task == "vqa":
        answers = list(record.texts)
        return f"{VQA_FORM.format(question=record.question)} {max(answers, key=answers.count)}"
    if task == "classification":
        return config.class_form.format(name=record.texts[0])
    return record.texts[0]


def check_shots(records: Records, examples: list[Record], config: EvaluationConfig) -> None:
    """Refuse more shots than there are examples of other images.

    Raises:
        ConfigError: likewise.
    """
    of_image = Counter(record.image_key for record in examples)
    most = len(examples) - max(of_image[record.image_key] for record in records.items)
    if max(config.shots) > most:
        rule = f"is at most the number of examples of other images than a query's, {most}"
        remedy = "name more in evaluation.demonstrations, or raise evaluation.max_samples"
        raise ConfigError([Problem("evaluation.shots", max(config.shots), rule, remedy)])


def _fit(
    asker: Asker,
    shots: list[Record],
    query: Record,
    task: str,
    config: EvaluationConfig,
    behind: int,
) -> tuple[Ask, int]:
    """The prompt, and how many of the first examples are left out for it to have positions.

    Args:
        asker: of the model.
        shots: the examples.
        query: behind them.
        task: see `task_of`.
        config: section `evaluation`.
        behind: tokens that are to have positions too.
    """
    beginning = VQA_FORM.format(question=query.question) if task == "vqa" else ""
    for left_out in range(len(shots) + 1):
        prompt: Ask = []
        for record in shots[left_out:]:
            prompt += [record.image, demonstration(record, task, config)]
        prompt += [query.image, *([beginning] if beginning else [])]
        limit = asker.model.max_positions
        if limit is None or asker.length(prompt) + behind <= limit:
            return prompt, left_out
    return prompt, len(shots)


def _scores(condition: str, told: Told, records: Records) -> dict[str, Score]:
    if condition in told.scores:
        labels = np.array([record.label for record in records.items])
        return classification_scores(told.scores[condition], labels)
    said, truths = told.said[condition], [list(record.texts) for record in records.items]
    if task_of(records) == "vqa":
        return {"vqa_accuracy": vqa_accuracy(said, truths)}
    return caption_scores(said, truths)
