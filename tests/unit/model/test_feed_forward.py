import math

import pytest
import torch

from model.feed_forward import DenseFeedForward

FORMS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "squared_relu": lambda x: torch.where(x > 0, x * x, 0.0),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_without_a_gate_equal_their_formula(form):
    torch.manual_seed(0)
    module = DenseFeedForward(6, 10, form=form).double()
    tokens = torch.randn(3, 4, 6, dtype=torch.float64)
    up, down = module.up_proj.weight, module.down_proj.weight
    torch.testing.assert_close(module(tokens), FORMS[form](tokens @ up.T) @ down.T)
    assert [name for name, _ in module.named_parameters()] == ["up_proj.weight", "down_proj.weight"]


def test_swiglu_equals_its_formula_gate_first():
    torch.manual_seed(0)
    module = DenseFeedForward(6, 10).double()
    tokens = torch.randn(7, 6, dtype=torch.float64)
    gate, up = (module.gate_up_proj.weight[rows] for rows in (slice(10), slice(10, 20)))
    gated = tokens @ gate.T / (1 + torch.exp(-tokens @ gate.T)) * (tokens @ up.T)
    torch.testing.assert_close(module(tokens), gated @ module.down_proj.weight.T)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form = 'tanh' is not one of swiglu, gelu, squared_relu"):
        DenseFeedForward(6, 10, form="tanh")
