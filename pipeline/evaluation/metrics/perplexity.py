"""Perplexity of texts under a model."""

import numpy as np

from pipeline.evaluation.metrics.score import Score, ratio_score


def perplexity(nats: np.ndarray, tokens: np.ndarray) -> Score:
    """exp of the negative log-likelihood per token, over the tokens of all samples together.

    Args:
        nats: ``[N]``, summed negative log-likelihood of each sample's tokens.
        tokens: ``[N]``, how many tokens that is; a sample without any counts for nothing.

    Raises:
        ValueError: the lengths differ, or a number of tokens is negative.
    """
    nats, tokens = np.asarray(nats, np.float64), np.asarray(tokens, np.float64)
    if nats.shape != tokens.shape or nats.ndim != 1:
        raise ValueError(
            f"nats {nats.shape} and tokens {tokens.shape} are one number a sample each"
        )
    if (tokens < 0).any():
        raise ValueError(f"a sample has {int(tokens.min())} tokens")
    return ratio_score(nats, tokens, transform=np.exp)
