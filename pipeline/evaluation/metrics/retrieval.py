"""Recall@K, mean average precision and ranks of retrieval, and of images and texts both ways."""

import numpy as np

from pipeline.evaluation.metrics.score import Score, mean_score

KS = (1, 5, 10)


def image_text_retrieval(
    similarity: np.ndarray, image_of_text: np.ndarray
) -> dict[str, dict[str, Score]]:
    """Retrieval both ways between images and texts, several texts of an image.

    Args:
        similarity: ``[I, T]``.
        image_of_text: int ``[T]``, the image that each text is of, 0 to I - 1.

    Returns:
        ``image_to_text``: of I queries; the best of an image's texts counts for recall and rank.
        ``text_to_image``: of T queries, each with one image that is right. Both as
        `retrieval_scores` gives them.

    Raises:
        ValueError: shapes or numbers do not fit, an image has no text, or a similarity is NaN.

    Source: COCO retrieval as in Karpathy and Fei-Fei (arXiv:1412.2306) section 4.1 and CLIP.
    """
    similarity, images = np.asarray(similarity), np.asarray(image_of_text, np.int64)
    if similarity.ndim != 2 or images.shape != similarity.shape[1:]:
        raise ValueError(
            f"similarity {similarity.shape} is [I, T], image_of_text {images.shape} [T]"
        )
    relevant = np.arange(len(similarity))[:, None] == images
    if not relevant.any(0).all():
        raise ValueError(f"a text is of no image from 0 to {len(similarity) - 1}")
    return {
        "image_to_text": retrieval_scores(similarity, relevant),
        "text_to_image": retrieval_scores(similarity.T, relevant.T),
    }


def retrieval_scores(similarity: np.ndarray, relevant: np.ndarray) -> dict[str, Score]:
    """``recall_1``, ``recall_5``, ``recall_10``, ``map``, ``mean_rank``, ``median_rank`` of queries.

    Items as similar as a relevant one, and not relevant, count as before it: a model to which all is
    alike ranks every relevant item last.

    Args:
        similarity: ``[Q, G]``, of each query and item.
        relevant: bool ``[Q, G]``, at least one for each query.

    Raises:
        ValueError: shapes differ, a query has no relevant item, or a similarity is NaN.
    """
    best, precision = _ranks(similarity, relevant)
    scores = {f"recall_{k}": mean_score(best <= k) for k in KS}
    scores["map"] = mean_score(precision)
    scores["mean_rank"] = mean_score(best)
    scores["median_rank"] = median_score(best)
    return scores


def median_score(values: np.ndarray) -> Score:
    """The median over samples; of an even number the mean of the middle two."""
    values = np.asarray(values, np.float64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]

    def figure(weights: np.ndarray) -> np.ndarray:
        if not len(values):
            return np.full(len(weights), np.nan)
        ends = np.cumsum(weights[:, order], axis=1)
        total = ends[:, -1:]
        # The middle two of a list in which each value stands as often as it was drawn.
        low = (ends < np.floor((total + 1) / 2)).sum(1)
        high = (ends < np.floor(total / 2) + 1).sum(1)
        last = len(values) - 1
        return (ordered[np.minimum(low, last)] + ordered[np.minimum(high, last)]) / 2

    return Score(figure, values)


def _ranks(similarity: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each query's best relevant item, from 1, and average precision of each query."""
    similarity, relevant = np.asarray(similarity), np.asarray(relevant, bool)
    if similarity.shape != relevant.shape or similarity.ndim != 2:
        raise ValueError(f"similarity {similarity.shape} and relevant {relevant.shape} are [Q, G]")
    if not relevant.any(axis=1).all():
        raise ValueError(f"{int((~relevant.any(axis=1)).sum())} queries have no relevant item")
    if np.isnan(similarity).any():
        raise ValueError(f"{int(np.isnan(similarity).any(1).sum())} queries have similarity NaN")
    best = np.empty(len(similarity))
    precision = np.empty(len(similarity))
    for query, (row, right) in enumerate(zip(similarity, relevant, strict=True)):
        wrong = np.sort(row[~right])
        before = len(wrong) - np.searchsorted(wrong, -np.sort(-row[right]), side="left")
        places = before + np.arange(1, len(before) + 1)
        best[query] = places[0]
        precision[query] = np.mean(np.arange(1, len(before) + 1) / places)
    return best, precision
