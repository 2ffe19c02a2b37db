"""ROUGE-L of captions with several references each."""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.metrics.bleu import check_references
from pipeline.evaluation.metrics.score import Score, mean_score

BETA = 1.2


def rouge_l(candidates: Sequence[list[str]], references: Sequence[list[list[str]]]) -> Score:
    """Mean over captions of the F-measure of their longest common subsequence with a reference.

    Args:
        candidates: tokens of each of N captions.
        references: of each its references' tokens, at least one.

    Raises:
        ValueError: the numbers of captions differ, or one has no reference.

    Source: Lin, ROUGE (2004), section 3.1, as captioning has it and pycocoevalcap's ``Rouge`` counts:
    beta is 1.2, and the best precision and the best recall may be of different references.
    """
    check_references(candidates, references)
    values = [_f_measure(c, r) for c, r in zip(candidates, references, strict=True)]
    return mean_score(np.array(values, np.float64))


def _f_measure(candidate: list[str], references: list[list[str]]) -> float:
    candidate = candidate or [""]  # an empty caption is one empty token to the field's scorer
    common = [(common_length(r or [""], candidate), len(r or [""])) for r in references]
    precision = max(length for length, _ in common) / len(candidate)
    recall = max(length / size for length, size in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_length(a: list[str], b: list[str]) -> int:
    """Tokens of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for token in a:
        above = 0
        for i, other in enumerate(b, 1):
            above, row[i] = row[i], above + 1 if token == other else max(row[i], row[i - 1])
    return row[-1]
