from types import SimpleNamespace

import pytest
import torch

from pipeline.healing.guard import poison, skip_reason


def test_a_finite_loss_and_its_gradient_keep_every_bit():
    x = torch.randn(100, requires_grad=True)
    (plain,) = torch.autograd.grad((x**2).sum(), x)
    loss = (x**2).sum()
    guarded = poison(loss)
    (gradient,) = torch.autograd.grad(guarded, x)
    assert torch.equal(guarded, loss) and torch.equal(gradient, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_poisons_a_gradient_that_would_be(bad, dtype):
    x = torch.randn(100, dtype=dtype, requires_grad=True)
    (plain,) = torch.autograd.grad(x.sum() + bad, x)
    assert plain.isfinite().all()
    guarded = poison(x.sum() + bad)
    (gradient,) = torch.autograd.grad(guarded, x)
    assert guarded.isnan() and gradient.isnan().all() and guarded.dtype == dtype


@pytest.mark.parametrize(
    "applied, finite, fp16, reason",
    [
        (True, True, True, None),
        (True, True, False, None),
        (False, True, True, "backoff"),
        (False, False, True, "skip"),
        (False, True, False, "skip"),
        (False, False, False, "skip"),
    ],
)
def test_only_an_overflow_of_fp16_with_finite_losses_is_no_fault(applied, finite, fp16, reason):
    """fp16 does not run on a CPU: the two answers of the engine are written down here."""
    engine = SimpleNamespace(was_step_applied=lambda: applied, fp16_enabled=lambda: fp16)
    assert skip_reason(engine, loss_was_finite=finite) == reason
