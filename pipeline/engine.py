"""The DeepSpeed engine around a model: optimizer, experts over ranks, precision; and its weights by name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_prep.errors import ConfigError, Problem
from pipeline.batch_plan import BatchPlan
from pipeline.config import RunConfig
from pipeline.deepspeed_config import build_deepspeed_config, is_expert_parallel, zero_stage
from pipeline.optim import build_optimizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def resolve_precision(wanted: str, device: torch.device) -> str:
    """fp32 or bf16. `auto` takes bf16 where matrices are multiplied in bf16 by the hardware.

    On a CPU that means AMX tiles: AVX512-BF16 alone converts too much around each product to gain.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


@contextmanager
def divided_loading(config: RunConfig, plan: BatchPlan, precision: str) -> Iterator[None]:
    """Under ZeRO-3, divide pretrained towers over the ranks while they are loaded; else do nothing.

    A tower that does not fit one device then never stands on one. The process group must be there.
    """
    if zero_stage(config) != 3 or config.objective != "flamingo":
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # transformers looks for the living object whenever it loads a model.
    living = HfDeepSpeedConfig(build_deepspeed_config(config, plan, precision))
    try:
        yield
    finally:
        del living
        unset_hf_deepspeed_config()


def start_engine(config: RunConfig, module: nn.Module, plan: BatchPlan, precision: str):
    """`deepspeed.initialize` with our optimizer; returns the engine.

    Expert parallelism replaces the stacked experts by DeepSpeed's AutoEP layers, whose router logits
    our losses go on reading.
    """
    import deepspeed  # slow: only a training process needs it

    split = is_expert_parallel(config)
    engine, *_ = deepspeed.initialize(
        model=module,
        # A callable: the optimizer must see the parameters after the experts were divided.
        optimizer=lambda _: build_optimizer(
            config.optim, module, split_experts=split or _has_native_experts(module)
        ),
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        config=build_deepspeed_config(config, plan, precision),
    )
    if hasattr(module, "attach_router_hooks"):
        module.attach_router_hooks()
    return engine


def optimizer_state_dtypes(engine) -> dict[str, int]:
    """Bytes of optimizer moments on this rank per dtype, as they are, not as they were asked for."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    sizes: dict[str, int] = {}
    for state in inner.state.values():
        for name in ("state1", "state2", "exp_avg", "exp_avg_sq"):
            if torch.is_tensor(state.get(name)):
                tensor = state[name]
                dtype = str(tensor.dtype).removeprefix("torch.")
                sizes[dtype] = sizes.get(dtype, 0) + tensor.numel() * tensor.element_size()
    return sizes


def gather_trainable(engine) -> dict[str, Tensor]:
    """Trainable weights by the names of the undivided model, on the CPU; every rank must call it.

    Experts divided over ranks are joined again: AutoEP keeps gate (w1), down (w2) and up (w3) apart,
    [E / ranks, F, H] each, where the model has gate_up_proj [E, 2F, H] and down_proj [E, H, F].
    """
    from deepspeed.runtime.zero import GatheredParameters

    weights: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            with GatheredParameters([parameter]):
                value = parameter.detach().clone()
        else:
            value = parameter.detach().clone()
        if not getattr(parameter, "allreduce", True):
            value = _join_experts(value, parameter.group_name)
        weights[name] = value.cpu()
    return _undivided_names(weights)


def _join_experts(value: Tensor, group_name: str) -> Tensor:
    from deepspeed.utils import groups

    group = groups._get_expert_parallel_group(group_name)
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, value.contiguous(), group=group)
    return torch.cat(parts)


def _undivided_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"(.*\.routed)\.router\.gate\.weight", name):
            renamed[f"{match[1]}.gate.weight"] = value
        elif match := re.fullmatch(r"(.*\.experts)\.w1", name):
            gate_up = torch.cat([value, weights[f"{match[1]}.w3"]], dim=1)
            renamed[f"{match[1]}.gate_up_proj"] = gate_up
        elif match := re.fullmatch(r"(.*\.experts)\.w2", name):
            renamed[f"{match[1]}.down_proj"] = value
        elif not re.fullmatch(r".*\.experts\.w3", name):
            renamed[name] = value
    return renamed


def load_trainable(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put gathered weights into an undivided model.

    Raises:
        ConfigError: names or shapes are not those of the model.
    """
    own = {n: p for n, p in module.named_parameters() if p.requires_grad}
    wrong = sorted(set(own) ^ set(weights))
    wrong += [n for n in own if n in weights and own[n].shape != weights[n].shape]
    if wrong:
        raise ConfigError(
            [
                Problem(
                    "model",
                    f"{len(wrong)} parameters, first {wrong[0]}",
                    "the checkpoint and the configured model have the same parameters",
                    "use the config.yaml beside the checkpoint",
                )
            ]
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def _has_native_experts(module: nn.Module) -> bool:
    return any(not getattr(p, "allreduce", True) for p in module.parameters())
