import math

import pytest
import torch
from torch.nn import functional

from model.contrastive_loss import ContrastiveHead, PairLoss

FORMS = ["info_nce", "sigmoid"]


def unit(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, width, generator=generator), dim=-1)


def naive_loss(image, text, valid, form, log_scale, bias):
    """Pair by pair in float64, over the valid rows alone."""
    rows = [i for i in range(len(image)) if valid[i]]
    total = torch.zeros(1, dtype=torch.float64)
    scale = log_scale.exp()
    for i in rows:
        scores = {j: scale * image[i] @ text[j] for j in rows}
        across = {j: scale * image[j] @ text[i] for j in rows}
        if form == "info_nce":
            for found in (scores, across):
                total += (sum(s.exp() for s in found.values()).log() - found[i]) / 2
        else:
            for j in rows:
                sign = 1.0 if i == j else -1.0
                total += (1 + (-sign * (scores[j] + bias)).exp()).log()
    return (total / max(len(rows), 1)).squeeze()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradients_equal_a_naive_float64_loop(form, seed):
    image, text = unit(6, 5, seed).requires_grad_(), unit(6, 5, seed + 10).requires_grad_()
    valid = torch.tensor([True, True, False, True, False, True])
    loss = PairLoss(form)
    with torch.no_grad():
        loss.log_scale.fill_(1.3)
    value, _ = loss(image, text, valid, across_ranks=False)
    value.backward()
    parameters = [image, text, loss.log_scale] + ([loss.bias] if form == "sigmoid" else [])
    copies = [p.detach().double().requires_grad_() for p in parameters]
    bias = copies[3] if form == "sigmoid" else None
    expected = naive_loss(copies[0], copies[1], valid, form, copies[2], bias)
    expected.backward()
    torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-5)
    for ours, reference in zip(parameters, copies, strict=True):
        torch.testing.assert_close(ours.grad.double(), reference.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_no_pair_change_nothing(form):
    image, text = unit(5, 4, 0), unit(5, 4, 1)
    valid = torch.tensor([True, False, True, True, False])
    loss = PairLoss(form)
    before = loss(image, text, valid, across_ranks=False)
    image[1], text[4] = -image[0], text[2]
    after = loss(image, text, valid, across_ranks=False)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


@pytest.mark.parametrize("form", FORMS)
def test_without_any_pair_loss_and_gradients_are_zero(form):
    head = ContrastiveHead(6, 7, 4, form)
    latents = torch.randn(3, 2, 6, requires_grad=True)
    none = torch.zeros(3, dtype=torch.bool)
    loss, accuracy = head(latents, torch.randn(3, 7), none, across_ranks=False)
    loss.backward()
    assert float(loss) == float(accuracy) == 0.0
    for tensor in (latents, *head.parameters()):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_accuracy_counts_both_directions():
    image = torch.eye(3)
    text = torch.stack([image[0], 0.9 * image[2], image[2]])
    # Images: 0 and 2 find their text, 1 does not. Texts: 0 and 2 find their image, 1 does not.
    _, accuracy = PairLoss("info_nce")(image, text, across_ranks=False)
    assert float(accuracy) == pytest.approx(2 / 3)


def test_the_temperature_starts_as_published_and_is_bounded():
    clip, siglip = PairLoss("info_nce"), PairLoss("sigmoid")
    assert float(clip.log_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    assert float(siglip.log_scale.detach()) == pytest.approx(math.log(10))
    assert float(siglip.bias.detach()) == -10.0
    image, text = unit(4, 4, 0), unit(4, 4, 1)
    with torch.no_grad():
        values = []
        for log_scale in (math.log(100.0), 50.0):
            clip.log_scale.fill_(log_scale)
            values.append(clip(image, text, across_ranks=False)[0])
    assert torch.equal(*values)


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="'softmax' is neither info_nce nor sigmoid"):
        PairLoss("softmax")
