"""Parameter groups, AdamW in 32 or 8 bits, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable

import torch
from torch import nn

from pipeline.config import OptimConfig

DELICATE = (
    "gate.weight",
    "gate.wg.weight",
    "latents",
    "positions",
    "frames",
    "new_tokens.weight",
    "new_tokens.head_weight",
)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Three groups of trainable parameters: matrices, the resampler's matrices, everything delicate.

    The resampler's weights do not decay (Flamingo paper, appendix B.1.2). Delicate are gates, norms,
    biases, latents, positions, new token embeddings and routers: no decay, and optimizer states in 32 bits.
    """
    matrices, resampler, delicate = [], [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or name.endswith(DELICATE):
            delicate.append(parameter)
        else:
            (resampler if "resampler" in name else matrices).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "name": "matrices", "optim_bits": 8},
        {"params": resampler, "weight_decay": 0.0, "name": "resampler", "optim_bits": 8},
        {"params": delicate, "weight_decay": 0.0, "name": "delicate", "optim_bits": 32},
    ]
    return [g for g in groups if g["params"]]


def build_optimizer(
    config: OptimConfig, module: nn.Module, *, split_experts: bool = False
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters as they are now.

    Args:
        config: the `optim` section.
        module: after DeepSpeed has divided the experts, if it does.
        split_experts: put parameters of divided experts into groups of their own, as DeepSpeed asks.
    """
    groups = parameter_groups(module, config.weight_decay)
    if split_experts:
        from deepspeed.moe.utils import configure_moe_param_groups  # slow: only where needed

        groups = configure_moe_param_groups(groups)
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2)}
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **settings)
    return _adamw_8bit()(groups, **settings)


def _adamw_8bit() -> Callable[..., torch.optim.Optimizer]:
    import bitsandbytes as bnb  # slow: only where needed

    class GroupwiseAdamW8bit(bnb.optim.AdamW8bit):
        """8-bit AdamW that honours `optim_bits` per group.

        bitsandbytes' own override goes by tensor identity, which ZeRO's flat tensors do not keep.
        """

        def get_config(self, gindex, pindex, group):
            config = super().get_config(gindex, pindex, group)
            config["optim_bits"] = group.get("optim_bits", config["optim_bits"])
            return config

    return GroupwiseAdamW8bit


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then constant or cosine to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))
