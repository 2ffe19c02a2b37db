"""Batch normalisation in half precision whose statistics stay in fp32."""

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` for weights of any precision beside running statistics in fp32.

    DeepSpeed casts the parameters of a model and leaves its buffers, which is right: a running mean in bf16
    takes in nothing that is smaller than its own rounding. PyTorch takes statistics in fp32 only beside weights
    in fp32, so they are cast for the call; the output has the precision of the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight.to(self.running_mean.dtype),
            self.bias.to(self.running_mean.dtype),
            self.training,
            self.momentum,
            self.eps,
        )


def keep_statistics(model: nn.Module) -> nn.Module:
    """Make every `torch.nn.BatchNorm2d` of a model one of ours, in place; the model."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNorm2d
    return model
