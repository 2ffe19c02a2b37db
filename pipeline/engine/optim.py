"""Parameter groups, the optimizer over them, and the learning rate as a pure function of the step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from pipeline.engine.blockwise import BlockwiseOptimizer
from pipeline.engine.config import OptimConfig, UnfreezeConfig
from pipeline.engine.unfreeze import ENTRY

DELICATE = (
    "gate.weight",
    "gate.wg.weight",
    "latents",
    "positions",
    "frames",
    "new_tokens.weight",
    "new_tokens.head_weight",
)


def parameter_groups(
    module: nn.Module, weight_decay: float, entries: Sequence[UnfreezeConfig] = ()
) -> list[dict]:
    """Three groups of trainable parameters: matrices, the resampler's matrices, everything delicate.

    The resampler's weights do not decay (Flamingo paper, appendix B.1.2). Delicate are gates, norms,
    biases, latents, positions, new token embeddings and routers: no decay, and optimizer states in 32 bits.
    What an entry of train.unfreeze added has such groups of its own, with its own `lr_scale`.
    """
    found: dict[tuple[str, int], dict] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        entry = getattr(parameter, ENTRY, -1)
        if parameter.ndim < 2 or name.endswith(DELICATE):
            kind, decay, bits = "delicate", 0.0, 32
        elif "resampler" in name:
            kind, decay, bits = "resampler", 0.0, 8
        else:
            kind, decay, bits = "matrices", weight_decay, 8
        if (kind, entry) not in found:
            found[kind, entry] = {
                "params": [],
                "weight_decay": decay,
                "name": kind if entry < 0 else f"{kind} of train.unfreeze.{entry}",
                "optim_bits": bits,
                "lr_scale": 1.0 if entry < 0 else entries[entry].lr_scale,
            }
        found[kind, entry]["params"].append(parameter)
    order = ("matrices", "resampler", "delicate")
    return [found[key] for key in sorted(found, key=lambda k: (k[1], order.index(k[0])))]


def build_optimizer(
    config: OptimConfig,
    module: nn.Module,
    *,
    split_experts: bool = False,
    entries: Sequence[UnfreezeConfig] = (),
) -> torch.optim.Optimizer:
    """The optimizer of `optim.name` over the trainable parameters as they are now.

    Args:
        config: the `optim` section.
        module: after DeepSpeed has divided the experts, if it does.
        entries: train.unfreeze.
        split_experts: put parameters of divided experts into groups of their own, as DeepSpeed asks.
    """
    groups = parameter_groups(module, config.weight_decay, entries)
    if split_experts:
        from deepspeed.moe.utils import configure_moe_param_groups  # slow: only where needed

        groups = [group for group in configure_moe_param_groups(groups) if group["params"]]
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2)}
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **settings)
    rule = {"adamw_8bit": "adam", "lion_8bit": "lion"}[config.name]
    return BlockwiseOptimizer(groups, rule, min_8bit_numel=config.min_8bit_numel, **settings)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        return config.lr * min(1.0, (steps - step) / max(1, config.decay_steps))
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
