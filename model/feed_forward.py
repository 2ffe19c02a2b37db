"""The dense feed-forward: of the gated blocks, of the resampler, and of a shared expert.

Shape legend: H width, F hidden width.
"""

from torch import Tensor, nn


class SquaredReLU(nn.Module):
    """``relu(x)^2``. Source: Primer (arXiv:2109.08668); the activation of Flamingo."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the same shape."""
        return hidden.relu().square()


class DenseFeedForward(nn.Module):
    """A feed-forward without bias and without a norm of its own.

    ``swiglu`` is ``down(silu(gate(x)) * up(x))``, with gate and up in one matrix, gate first, as in
    `model.experts.StackedExperts`; the other forms are ``down(form(up(x)))``.

    Args:
        width: H.
        hidden: F.
        form: ``swiglu``, ``gelu`` (by erf, not by tanh), ``squared_relu`` or ``relu``.

    Raises:
        ValueError: another form.

    Source: SwiGLU arXiv:2002.05202; which model has which form is said in `model.config`.
    """

    def __init__(self, width: int, hidden: int, *, form: str = "swiglu") -> None:
        super().__init__()
        activations = {
            "swiglu": nn.SiLU,
            "gelu": nn.GELU,
            "squared_relu": SquaredReLU,
            "relu": nn.ReLU,
        }
        if form not in activations:
            raise ValueError(f"form = {form!r} is not one of {', '.join(activations)}")
        self.form = form
        if form == "swiglu":
            self.gate_up_proj = nn.Linear(width, 2 * hidden, bias=False)
        else:
            self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.act_fn = activations[form]()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[..., H]`` to ``[..., H]``."""
        if self.form == "swiglu":
            gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
            return self.down_proj(self.act_fn(gate) * up)
        return self.down_proj(self.act_fn(self.up_proj(hidden)))
