"""Which class an image is of: the one whose text is likeliest after it, or nearest to it."""

import numpy as np

from data_prep.errors import ConfigError, Problem
from pipeline.evaluation.asker import Asker
from pipeline.evaluation.choices import weigh_choices
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.contrast import similarities
from pipeline.evaluation.layouts.record import Records
from pipeline.evaluation.metrics.classification import classification_scores
from pipeline.evaluation.outcome import Outcome, rows_of


def ask(asker: Asker, records: Records, config: EvaluationConfig) -> dict[str, np.ndarray]:
    """Scores ``[N, C]`` by way of comparing; every rank must call it.

    `sum` is the log-likelihood of a class's text with its end marks, `mean` that per token, which does
    not punish long names; `contrastive` the likeness by the model's head, where it has one.

    Raises:
        ConfigError: the records have no classes.
    """
    check_classes(records)
    names = [config.class_form.format(name=name) for name in records.class_names]
    nats, tokens = weigh_choices(asker, [[r.image] for r in records.items], names, name="classes")
    scores = {"sum": -nats, "mean": -nats / tokens}
    if asker.model.contrastive is not None:
        images = [record.image for record in records.items]
        scores["contrastive"] = similarities(asker, images, names)
    return scores


def judge(scores: dict[str, np.ndarray], records: Records, config: EvaluationConfig) -> Outcome:
    """Accuracies and mAP of every way."""
    labels = np.array([record.label for record in records.items])
    said = {
        "" if way == "sum" else way: [records.class_names[c] for c in found.argmax(1)]
        for way, found in scores.items()
    }
    outcome = Outcome(config.resamples, rows=rows_of(records.items, said))
    for way, found in scores.items():
        for name, score in classification_scores(found, labels).items():
            outcome.add(name, score, "" if way == "sum" else way)
    outcome.wrong_by = "accuracy_1"
    return outcome


def check_classes(records: Records) -> None:
    """Refuse records without classes.

    Raises:
        ConfigError: likewise.
    """
    if not records.class_names:
        rule = f"has a folder for each class, for suite classification; layout {records.layout} has none"
        remedy = (
            "set evaluation.data.path to a folder of folders, and class_names if they are codes"
        )
        raise ConfigError([Problem("evaluation.data", records.layout, rule, remedy)])
