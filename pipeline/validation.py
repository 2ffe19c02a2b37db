"""Held-out loss with the image and, as the control, with the image zeroed."""

import torch
from torch import nn

from pipeline.data.batch import Batch
from pipeline.distributed import DistInfo, sum_over_ranks
from pipeline.objectives import run_flamingo


@torch.no_grad()
def held_out_losses(
    module: nn.Module, batches: list[Batch], info: DistInfo, dtype: torch.dtype
) -> dict[str, float]:
    """Mean loss per target token in nats over all ranks; every rank must bring as many batches.

    A difference of nothing between the two means that the model does not look at the image.
    """
    was_training = module.training
    module.eval()
    tokens = sum_over_ranks(sum(b.num_target_tokens for b in batches), info)
    losses = {}
    for name, zero_image in (("held_out_loss", False), ("held_out_loss_zero_image", True)):
        total = 0.0
        for batch in batches:
            shown = batch.zero_images() if zero_image else batch
            total += run_flamingo(module, shown.to(info.device, dtype)).loss_sum.item()
        losses[name] = sum_over_ranks(total, info) / tokens
    module.train(was_training)
    return losses
