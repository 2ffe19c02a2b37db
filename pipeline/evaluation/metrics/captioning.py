"""All figures of captioning, from texts."""

from collections.abc import Sequence

from pipeline.evaluation.metrics.bleu import bleu
from pipeline.evaluation.metrics.cider import DocumentFrequency, cider_d
from pipeline.evaluation.metrics.rouge import rouge_l
from pipeline.evaluation.metrics.score import Score
from pipeline.evaluation.metrics.tokenize import tokenize


def caption_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    frequency: DocumentFrequency | None = None,
) -> dict[str, Score]:
    """``cider_d``, ``bleu_1`` to ``bleu_4`` and ``rouge_l`` of captions as written.

    Args:
        captions: of N images.
        references: people's captions of each image, at least one.
        frequency: for `cider_d`; None: counted over these references.

    Raises:
        ValueError: the numbers of captions differ, or one has no reference.
    """
    said = [tokenize(text) for text in captions]
    true = [[tokenize(text) for text in texts] for texts in references]
    scores = {"cider_d": cider_d(said, true, frequency)}
    scores |= {f"bleu_{n}": score for n, score in enumerate(bleu(said, true), 1)}
    return scores | {"rouge_l": rouge_l(said, true)}
