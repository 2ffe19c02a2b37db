"""First values of attention projections."""

from torch import nn


def unit_logits_(*projections: nn.Linear) -> None:
    """Draw weights so that normalised inputs give attention logits of variance 1.

    Flamingo's own framework draws weights with variance 1 / fan_in; `nn.Linear` with a third of it,
    which leaves the logits of a fresh layer with a standard deviation of 1/3: every token starts by
    reading the mean of all patches, and a short run is over before it has learnt to choose.
    """
    for projection in projections:
        nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
