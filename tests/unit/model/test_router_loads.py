import math

import numpy as np
import pytest
import torch

from model.router_loads import RouterLoads, router_figures


def by_hand(logits, top_k):
    """Counts, summed entropy and tokens, token by token in float64."""
    counts, entropy = np.zeros(logits.shape[1]), 0.0
    for row in logits.astype(np.float64):
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        entropy -= (p * np.log(p)).sum()
        for expert in sorted(range(len(row)), key=lambda e: -row[e])[:top_k]:
            counts[expert] += 1
    return [*counts, entropy, len(logits)]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_counts_and_entropy_over_several_forwards(top_k):
    loads, pieces = RouterLoads(), [torch.randn(n, 5) for n in (7, 0, 12)]
    for piece in pieces:
        loads.add(3, piece, top_k)
    expected = by_hand(torch.cat(pieces).numpy(), top_k)
    assert loads.sums.keys() == {3}
    np.testing.assert_allclose(loads.sums[3], expected, rtol=1e-5)


def test_figures_of_an_even_and_of_a_collapsed_router():
    even, collapsed = RouterLoads(), RouterLoads()
    even.add(0, torch.eye(4).repeat(6, 1) * 1e-3, 1)
    collapsed.add(0, torch.tensor([[90.0, 0, 0, 0]]).repeat(6, 1), 1)
    shares, entropy = router_figures(even.sums[0].tolist())
    assert shares == pytest.approx([1.0] * 4) and entropy == pytest.approx(1.0, abs=1e-4)
    shares, entropy = router_figures(collapsed.sums[0].tolist())
    assert shares == pytest.approx([4.0, 0, 0, 0]) and entropy == pytest.approx(0.0, abs=1e-6)


def test_figures_without_a_token_are_zero():
    assert router_figures([0.0, 0.0, 0.0, 0.0]) == ([0.0, 0.0], 0.0)
    assert router_figures([5.0, 0.0, 5.0]) == ([1.0], 0.0)
    assert router_figures([2.0, 2.0, 4 * math.log(2), 4.0])[1] == pytest.approx(1.0)
