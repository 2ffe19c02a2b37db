"""The chunked loss against all logits at once."""

import weakref

import pytest
import torch
from torch.nn import functional

from model.loss import chunked_cross_entropy

VOCABULARY, WIDTH, NEW = 11, 6, 3


def make(num_tokens, dtype=torch.float64):
    """Hidden states, rows of new tokens, targets, and a head that bends its logits."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    weight, hidden, rows = draw(VOCABULARY, WIDTH), draw(num_tokens, WIDTH), draw(NEW, WIDTH)
    targets = torch.randint(0, VOCABULARY + NEW, (num_tokens,), generator=generator)
    weight = weight.to(dtype)

    def head(hidden, rows):
        return 2 * torch.tanh(
            torch.cat([functional.linear(hidden, weight), functional.linear(hidden, rows)], -1)
        )

    return hidden.to(dtype).requires_grad_(), rows.to(dtype).requires_grad_(), targets, head


@pytest.mark.parametrize("rows_per_chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("num_tokens", [0, 1, 7])
def test_loss_and_gradients_are_those_of_all_logits(num_tokens, rows_per_chunk):
    hidden, rows, targets, head = make(num_tokens)
    each = functional.cross_entropy(head(hidden, rows), targets, reduction="none")
    expected = each.sum()
    ours, ours_each = chunked_cross_entropy(
        hidden,
        rows,
        targets,
        head,
        vocabulary=VOCABULARY,
        logits_per_chunk=rows_per_chunk * VOCABULARY,
    )
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(ours_each, each.detach())
    assert not ours_each.requires_grad
    inputs = hidden, rows
    for one, two in zip(
        torch.autograd.grad(0.3 * ours, inputs),
        torch.autograd.grad(0.3 * expected, inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_low_precision_is_summed_in_fp32():
    hidden, rows, targets, head = make(7, torch.bfloat16)
    expected = functional.cross_entropy(head(hidden, rows).float(), targets, reduction="sum")
    ours, each = chunked_cross_entropy(
        hidden, rows, targets, head, vocabulary=VOCABULARY, logits_per_chunk=2 * VOCABULARY
    )
    assert ours.dtype == each.dtype == torch.float32
    torch.testing.assert_close(ours, expected)
    (gradient,) = torch.autograd.grad(ours, [hidden])
    assert gradient.dtype == torch.bfloat16


def test_the_blocks_of_one_chunk_are_gone_before_the_next():
    """Or two chunks would be held at once."""
    hidden, rows, targets, head = make(6)
    alive, most = [], []

    def watched(hidden, rows):
        most.append(sum(reference() is not None for reference in alive))
        logits = head(hidden, rows)
        alive.append(weakref.ref(logits))
        return logits

    chunked_cross_entropy(
        hidden, rows, targets, watched, vocabulary=VOCABULARY, logits_per_chunk=2 * VOCABULARY
    )
    assert most == [0, 0, 0]


def test_without_gradient_nothing_is_kept():
    hidden, rows, targets, head = make(5)
    with torch.no_grad():
        loss, _ = chunked_cross_entropy(hidden, rows, targets, head, vocabulary=VOCABULARY)
    assert not loss.requires_grad
    torch.testing.assert_close(
        loss, functional.cross_entropy(head(hidden, rows), targets, reduction="sum")
    )
