import math

import pytest
import torch
from torch.nn import functional

from model.contrastive_loss import ContrastiveHead, PairLoss, UnitProjection

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
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_loss_and_gradients_equal_a_naive_float64_loop(form, dtype, error):
    image, text = (unit(6, 5, seed).to(dtype).requires_grad_() for seed in (0, 10))
    valid = torch.tensor([True, True, False, True, False, True])
    loss = PairLoss(form).to(dtype)
    with torch.no_grad():
        loss.log_scale.fill_(1.3)
    value, _ = loss(image, text, valid, across_ranks=False)
    value.backward()
    parameters = [image, text, loss.log_scale] + ([loss.bias] if form == "sigmoid" else [])
    copies = [p.detach().double().requires_grad_() for p in parameters]
    bias = copies[3] if form == "sigmoid" else None
    expected = naive_loss(copies[0], copies[1], valid, form, copies[2], bias)
    expected.backward()
    assert value.dtype == dtype
    torch.testing.assert_close(value.double(), expected, atol=error, rtol=error)
    for ours, reference in zip(parameters, copies, strict=True):
        torch.testing.assert_close(ours.grad.double(), reference.grad, atol=error, rtol=10 * error)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other", [-1.0, float("nan"), float("inf")])
def test_rows_that_are_no_pair_change_nothing(form, other):
    torch.manual_seed(0)
    head = ContrastiveHead(6, 7, 4, form)
    latents, text = torch.randn(5, 2, 6), torch.randn(5, 7)
    valid = torch.tensor([True, False, True, True, False])

    def run():
        found = [latents.clone().requires_grad_(), text.clone().requires_grad_()]
        head.zero_grad()
        loss, accuracy = head(*found, valid, across_ranks=False)
        loss.backward()
        gradients = [t.grad.clone() for t in (*found, *head.parameters())]
        return loss.detach(), accuracy, *gradients

    before = run()
    latents[1], text[4] = other, other
    after = run()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert not after[2][~valid].any() and not after[3][~valid].any()
    latents, text, valid = latents[valid], text[valid], None
    alone = run()
    for ours, expected in zip(after[:2] + after[4:], alone[:2] + alone[4:], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_vectors_that_are_no_pair_may_be_anything(form):
    valid = torch.tensor([True, False, True])
    loss = PairLoss(form)
    results = []
    for other in (0.5, float("nan")):
        image, text = unit(3, 4, 0), unit(3, 4, 1)
        image[1], text[1] = other, other
        image.requires_grad_(), text.requires_grad_()
        loss.zero_grad()
        value, _ = loss(image, text, valid, across_ranks=False)
        value.backward()
        results.append([value.detach(), image.grad, text.grad, loss.log_scale.grad.clone()])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_without_any_pair_loss_and_gradients_are_zero(form):
    head = ContrastiveHead(6, 7, 4, form)
    latents = torch.randn(3, 2, 6, requires_grad=True)
    none = torch.zeros(3, dtype=torch.bool)
    loss, accuracy = head(latents, torch.randn(3, 7), none, across_ranks=False)
    loss.backward()
    assert loss.item() == accuracy.item() == 0.0
    for tensor in (latents, *head.parameters()):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_bf16_are_computed_with_in_fp32(form):
    torch.manual_seed(0)
    head = ContrastiveHead(6, 7, 4, form).bfloat16()
    latents, text = torch.randn(4, 3, 6).bfloat16(), torch.randn(4, 7).bfloat16()
    loss, _ = head(latents, text, across_ranks=False)
    same = ContrastiveHead(6, 7, 4, form)
    same.load_state_dict(head.state_dict())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, same(latents.float(), text.float(), across_ranks=False)[0])


def test_a_projection_is_a_norm_a_matrix_and_length_1():
    torch.manual_seed(0)
    projection, norm = UnitProjection(6, 4), torch.nn.LayerNorm(6)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        projection.norm_weight.copy_(norm.weight)
        projection.norm_bias.copy_(norm.bias)
    features = torch.randn(3, 6)
    expected = norm(features) @ projection.weight.T
    expected = expected / expected.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(projection(features), expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_head_on_the_meta_device_gives_a_scalar(form):
    with torch.device("meta"):
        head = ContrastiveHead(6, 7, 4, form)
        valid = torch.ones(3, dtype=torch.bool)
        loss, accuracy = head(torch.randn(3, 2, 6), torch.randn(3, 7), valid, across_ranks=False)
    assert loss.is_meta and accuracy.is_meta and loss.shape == accuracy.shape == ()


def test_accuracy_counts_both_directions():
    image = torch.eye(4)
    text = torch.stack([image[0], 0.9 * image[2], image[2], image[1]])
    valid = torch.tensor([True, True, True, False])
    # Images: 0 and 2 find their text, 1 does not: all its scores are 0. Texts: 0 and 2 find their
    # image, 1 does not. Text 3, the nearest to image 1, is no pair.
    _, accuracy = PairLoss("info_nce")(image, text, valid, across_ranks=False)
    assert accuracy.item() == pytest.approx(2 / 3)
    text[1] = 0.1 * image[1]
    _, accuracy = PairLoss("sigmoid")(image, text, valid, across_ranks=False)
    assert accuracy.item() == 1.0
    _, accuracy = PairLoss("sigmoid")(image, text, across_ranks=False)
    assert accuracy.item() == pytest.approx(5 / 8)


def test_the_temperature_starts_as_published():
    clip, siglip = PairLoss("info_nce"), PairLoss("sigmoid")
    assert clip.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert clip.bias is None
    assert siglip.log_scale.item() == pytest.approx(math.log(10))
    assert siglip.bias.item() == -10.0


def test_only_the_softmax_form_bounds_its_scale_at_100():
    image, text = unit(4, 4, 0), unit(4, 4, 1)
    values = {}
    for form in FORMS:
        loss = PairLoss(form)
        for scale in (100.0, 200.0):
            loss.log_scale.data.fill_(math.log(scale))
            values[form, scale] = loss(image, text, across_ranks=False)[0].item()
    assert values["info_nce", 100.0] == values["info_nce", 200.0]
    assert values["sigmoid", 100.0] != values["sigmoid", 200.0]


def test_a_scale_beyond_its_bound_comes_back_but_goes_no_further():
    # Alike, so that a scale of 100 does not leave a loss of 0.
    image = functional.normalize(1 + 0.1 * unit(4, 4, 0), dim=-1)
    loss = PairLoss("info_nce")
    gradients = {}
    for log_scale in (4.0, 5.0):
        loss.log_scale.data.fill_(log_scale)
        for name, text in (("right", image), ("wrong", image.flip(0))):
            loss.zero_grad()
            loss(image, text, across_ranks=False)[0].backward()
            gradients[name, log_scale] = loss.log_scale.grad.item()
    assert gradients["right", 4.0] < 0 < gradients["wrong", 4.0]
    assert gradients["right", 5.0] == 0 < gradients["wrong", 5.0]


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="'softmax' is neither info_nce nor sigmoid"):
        PairLoss("softmax")
