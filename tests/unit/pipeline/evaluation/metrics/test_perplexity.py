import numpy as np
import pytest
import torch
from torchmetrics.text import Perplexity

from pipeline.evaluation.metrics.perplexity import perplexity


def test_is_that_of_torchmetrics_over_all_tokens_together():
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    logits = torch.randn(6, 9, 40, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 40, (6, 9), generator=generator)
    labels[torch.rand(6, 9, generator=generator) < 0.3] = -100
    reference = Perplexity(ignore_index=-100)(logits, labels).item()
    nats = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none").sum(1)
    score = perplexity(nats.numpy(), (labels != -100).sum(1).numpy())
    assert score.value == pytest.approx(reference, rel=1e-6)


def test_a_sample_without_tokens_counts_for_nothing():
    score = perplexity(np.array([2.0, 0.0]), np.array([4, 0]))
    assert score.value == np.exp(0.5) and np.isnan(score.per_sample[1])


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"nats \(2,\) and tokens \(3,\)"):
        perplexity(np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="a sample has -1 tokens"):
        perplexity(np.zeros(2), np.array([1, -1]))
