"""Captions compared attribute by attribute, where a grammar takes them apart."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from pipeline.evaluation.metrics.score import Score, mean_score, ratio_score

Parser = Callable[[str], dict[str, str] | None]


def attribute_scores(captions: list[str], truth: list[str], parse: Parser) -> dict[str, Score]:
    """``attribute_accuracy``, share of the true captions' attributes named rightly, and of each attribute.

    Args:
        captions: of N images.
        truth: the true ones.
        parse: attribute to value, or None for what the grammar does not know.
    """
    pairs = [(parse(t) or {}, parse(c) or {}) for c, t in zip(captions, truth, strict=True)]
    right = np.array([sum(got.get(k) == v for k, v in true.items()) for true, got in pairs])
    total = np.array([len(true) for true, _ in pairs])
    scores = {"attribute_accuracy": ratio_score(right, total)}
    for name in sorted({name for true, _ in pairs for name in true}):
        values = [
            float(got.get(name) == true[name]) if name in true else np.nan for true, got in pairs
        ]
        scores[f"attribute_{name}"] = mean_score(np.array(values))
    return scores


def chance(truth: list[str], parse: Parser) -> float:
    """Attribute accuracy of the best constant answer on these captions."""
    values: dict[str, Counter] = {}
    for true in truth:
        for name, value in (parse(true) or {}).items():
            values.setdefault(name, Counter())[value] += 1
    best = sum(counter.most_common(1)[0][1] for counter in values.values())
    return best / sum(counter.total() for counter in values.values())
