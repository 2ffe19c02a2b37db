"""The right text of an image among all, and the right image of a text."""

from dataclasses import replace

import numpy as np

from pipeline.evaluation.asker import Asker
from pipeline.evaluation.choices import weigh_choices
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.contrast import similarities
from pipeline.evaluation.layouts.read import draw
from pipeline.evaluation.layouts.record import Record, Records
from pipeline.evaluation.metrics.retrieval import image_text_retrieval
from pipeline.evaluation.outcome import Outcome, rows_of


def ask(asker: Asker, records: Records, config: EvaluationConfig) -> dict[str, np.ndarray]:
    """Likeness ``[I, T]`` of images and texts by way of comparing; every rank must call it.

    `likelihood` is the mean log-likelihood of a text's tokens after the image; `gain` is that less the
    same after a black image, which takes out how likely a text is anyhow; `contrastive` the likeness by
    the model's head, where it has one.
    """
    items = compared(records, config).items
    texts = [text for record in items for text in record.texts]
    nats, tokens = weigh_choices(asker, [[r.image] for r in items], texts, name="pairs")
    blind, _ = weigh_choices(asker, [[items[0].image]], texts, zero_image=True, name="texts alone")
    likely = -nats / tokens
    found = {"likelihood": likely, "gain": likely + blind / tokens}
    if asker.model.contrastive is not None:
        found["contrastive"] = similarities(asker, [r.image for r in items], texts)
    return found


def judge(found: dict[str, np.ndarray], records: Records, config: EvaluationConfig) -> Outcome:
    """Recall, mean average precision and ranks both ways."""
    items = compared(records, config).items
    owner = np.array([n for n, record in enumerate(items) for _ in record.texts])
    texts = [text for record in items for text in record.texts]
    said = {way: [texts[t] for t in likeness.argmax(1)] for way, likeness in found.items()}
    outcome = Outcome(config.resamples, rows=rows_of(items, said))
    for way, likeness in found.items():
        for direction, scores in image_text_retrieval(likeness, owner).items():
            for name, score in scores.items():
                outcome.add(f"{direction}_{name}", score, way)
    left = len(records) - len(items)
    if left:
        outcome.notes.append(
            f"{len(items)} images are compared with {len(texts)} texts, {left} images are left out "
            "(evaluation.retrieval_samples): every pair costs a forward"
        )
    outcome.wrong_by = "image_to_text_recall_1_likelihood"
    return outcome


def compared(records: Records, config: EvaluationConfig) -> Records:
    """The records that are compared: one for each image, drawn by key; texts in common are given once."""
    once: dict[str, Record] = {}
    seen: set[str] = set()
    for record in records.items:
        texts = tuple(dict.fromkeys(t for t in record.texts if t not in seen))
        if record.image_key not in once and texts:
            once[record.image_key] = replace(record, texts=texts)
            seen |= set(texts)
    items = [*once.values()]
    drawn = draw([record.key for record in items], config.retrieval_samples, 0)
    return replace(records, items=[items[n] for n in drawn])
