"""How likely people's captions are: with the image, with a black one, with that of another sample."""

import math

import numpy as np

from pipeline.evaluation.asker import Asker, Text
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.layouts.record import Records
from pipeline.evaluation.metrics.perplexity import perplexity
from pipeline.evaluation.metrics.score import ratio_score
from pipeline.evaluation.outcome import Outcome, rows_of

CONDITIONS = ("", "zero_image", "shuffled_image")
Weighed = dict[str, tuple[np.ndarray, np.ndarray]]


def ask(asker: Asker, records: Records, config: EvaluationConfig) -> Weighed:
    """(nats, tokens) of each record's first text by condition; every rank must call it."""
    items, others = records.items, another_image([r.image_key for r in records.items])
    weighed = {}
    for condition in CONDITIONS:
        if condition == "shuffled_image" and others is None:
            continue
        shuffled = condition == "shuffled_image"
        images = [items[others[n] if shuffled else n].image for n in range(len(items))]
        texts = [Text([i], r.texts[0]) for i, r in zip(images, items, strict=True)]
        name = f"likelihood {condition.replace('_', ' ')}".strip()
        weighed[condition] = asker.nats(texts, zero_image=condition == "zero_image", name=name)
    return weighed


def judge(weighed: Weighed, records: Records, config: EvaluationConfig) -> Outcome:
    """Perplexities, losses, and what looking at the image gains."""
    groups = [record.image_key for record in records.items]
    outcome = Outcome(config.resamples, groups, rows=rows_of(records.items))
    if "shuffled_image" not in weighed:
        outcome.notes.append("all samples are of one image: there is none to shuffle")
    losses = {condition: ratio_score(*pair) for condition, pair in weighed.items()}
    for condition, (nats, tokens) in weighed.items():
        outcome.add("perplexity", perplexity(nats, tokens), condition)
        outcome.add("held_out_loss", losses[condition], condition, unit="nats", better="lower")
    for condition in set(weighed) & {"zero_image", "shuffled_image"}:
        outcome.compare(
            "held_out_loss", losses[""], losses[condition], condition, unit="nats", better="lower"
        )
    outcome.wrong_by = outcome.hard_by = "held_out_loss"
    return outcome


def another_image(keys: list[str]) -> list[int] | None:
    """For each sample the number of one with another image; None where all are of one.

    Each sample's image is shown to another sample as often as it can be: the samples are turned by half
    of their number, and on from there where the image is still the same.
    """
    count = len(keys)
    if len(set(keys)) < 2:
        return None
    found = []
    for n in range(count):
        turned = ((n + math.ceil(count / 2) + k) % count for k in range(count))
        found.append(next(m for m in turned if keys[m] != keys[n]))
    return found
