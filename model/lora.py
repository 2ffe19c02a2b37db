"""Low-rank adapters on linear layers, by the peft library; merged into the weights when training is done.

Source: LoRA (arXiv:2106.09685). The first forward is that of the layers alone, to the bit: B starts at 0.
"""

import re

import torch
from torch import nn

# Routers decide by small differences, and the fused experts are no linear layers.
NEVER = ("routed.gate",)


def add_adapters(
    model: nn.Module, targets: str, *, rank: int, alpha: float, dropout: float, seed: int
) -> list[str]:
    """Put adapters on the linear layers whose names a regular expression matches whole.

    Everything else is frozen. The adapters depend on the seed alone.

    Args:
        model: changed in place: ``{name}`` becomes ``{name}.base_layer``, beside ``{name}.lora_A.default``.
        targets: regular expression over names of modules.
        rank: of the update.
        alpha: the update is multiplied by alpha / rank.
        dropout: on the adapters' input, in training.
        seed: of the adapters.

    Returns:
        names of the layers.

    Raises:
        ValueError: no linear layer is matched, or the expression is none.
    """
    from peft import LoraConfig, inject_adapter_in_model

    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ValueError(f"{targets!r} is no regular expression: {error}") from None
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(NEVER)
    ]
    names = [name for name in linear if pattern.fullmatch(name)]
    if not names:
        examples = ", ".join(linear[:: max(1, len(linear) // 4)])
        raise ValueError(f"{targets!r} matches no linear layer; some of their names: {examples}")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, bias="none"
        )
        inject_adapter_in_model(config, model)
    return names


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add every adapter to the weights of its layer, and put the layer back in its place."""
    from peft.tuners.lora import LoraLayer

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in layers:
        layer.merge()
        above, _, last = name.rpartition(".")
        setattr(model.get_submodule(above), last, layer.get_base_layer())
