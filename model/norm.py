"""The two normalisations of the gated blocks."""

from torch import nn

RMS_EPS = 1e-6


def build_norm(form: str, width: int) -> nn.Module:
    """``layer_norm`` (Flamingo, open_flamingo) or ``rms_norm`` with IDEFICS' epsilon, over the last axis."""
    return nn.LayerNorm(width) if form == "layer_norm" else nn.RMSNorm(width, eps=RMS_EPS)
