"""The DeepSpeed engine around a model: optimizer, experts over ranks, precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from data_prep.errors import ConfigError, Problem
from model.flamingo import Flamingo
from pipeline.batch_plan import BatchPlan
from pipeline.config import RunConfig
from pipeline.engine.blockwise import BlockwiseOptimizer
from pipeline.engine.deepspeed_config import build_deepspeed_config, is_expert_parallel, zero_stage
from pipeline.engine.fragments import EngineView, view_engine
from pipeline.engine.norms import join_norms
from pipeline.engine.optim import build_optimizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: str, device: torch.device) -> str:
    """fp32, bf16 or fp16. `auto` takes bf16 where matrices are multiplied in bf16 by the hardware.

    On a CPU that means AMX tiles: AVX512-BF16 alone converts too much around each product to gain.
    """
    if wanted == "fp16" and device.type == "cpu":
        rule = "is for GPUs: DeepSpeed has no fp16 on a CPU"
        raise ConfigError([Problem("train.precision", wanted, rule, "set train.precision=bf16")])
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
    # Where towers were divided while they were loaded, DeepSpeed leaves the rest in the dtype it has.
    for parameter in module.parameters():
        if parameter.is_floating_point() and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(DTYPES[precision])
    engine, *_ = deepspeed.initialize(
        model=module,
        # A callable: the optimizer must see the parameters after the experts were divided.
        optimizer=lambda _: build_optimizer(
            config.optim,
            module,
            split_experts=split or _has_native_experts(module),
            entries=config.train.unfreeze,
        ),
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        config=build_deepspeed_config(config, plan, precision),
    )
    join_norms(engine)
    if isinstance(module, Flamingo):
        module.routers.attach()
    view = view_engine(engine, zero_stage(config))
    if isinstance(view.inner, BlockwiseOptimizer):
        view.inner.place(view.keys, view.fragments, view.widths)
    return engine


def state_bytes(view: EngineView) -> dict[str, int]:
    """Bytes of optimizer moments on this rank per dtype, as they are, not as they were asked for.

    Scales of 8-bit moments count with these.
    """
    sizes: dict[str, int] = {}
    for key in view.keys:
        for name, tensor in view.inner.state.get(key, {}).items():
            if name == "step":
                continue
            dtype = (
                "uint8" if name.startswith("absmax") else str(tensor.dtype).removeprefix("torch.")
            )
            sizes[dtype] = sizes.get(dtype, 0) + tensor.numel() * tensor.element_size()
    return sizes


def _has_native_experts(module: nn.Module) -> bool:
    return any(not getattr(p, "allreduce", True) for p in module.parameters())
