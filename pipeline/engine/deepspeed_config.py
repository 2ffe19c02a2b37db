"""A strategy file of deepspeed_configs/ + RunConfig + BatchPlan -> the dict given to DeepSpeed.

Plain dicts: this module does not import deepspeed.
"""

import json
from pathlib import Path

from data_prep.errors import ConfigError, Problem
from pipeline.batch_plan import BatchPlan
from pipeline.config import RunConfig

STRATEGIES = Path(__file__).parents[2] / "deepspeed_configs"
ALLOWED = {
    "zero_optimization",
    "activation_checkpointing",
    "communication_data_type",
    "comms_logger",
    "flops_profiler",
    "aio",
}


def load_strategy(name: str) -> dict:
    """The strategy file as a dict.

    Raises:
        ConfigError: no such file, or it holds a key that the run configuration owns.
    """
    path = STRATEGIES / f"{name}.json"
    known = ", ".join(sorted(p.stem for p in STRATEGIES.glob("*.json")))
    if not path.is_file():
        raise ConfigError(
            [
                Problem(
                    "engine.strategy", name, "is a file of deepspeed_configs/", f"one of: {known}"
                )
            ]
        )
    strategy = json.loads(path.read_text())
    foreign = sorted(set(strategy) - ALLOWED)
    if foreign:
        raise ConfigError(
            [
                Problem(
                    f"deepspeed_configs/{name}.json",
                    key,
                    "a strategy file says only how to shard",
                    "set it in the run configuration (batch, optim, train)",
                )
                for key in foreign
            ]
        )
    return strategy


def build_deepspeed_config(config: RunConfig, plan: BatchPlan, precision: str) -> dict:
    """The whole dict for `deepspeed.initialize`; every number concrete, no "auto"."""
    merged = load_strategy(config.engine.strategy)
    merged |= {
        "train_batch_size": plan.global_size,
        "train_micro_batch_size_per_gpu": plan.micro_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "gradient_clipping": config.optim.clip_norm,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    experts = config.model.experts
    if is_expert_parallel(config):
        merged["expert_parallel"] = {
            "enabled": True,
            "autoep_size": config.engine.expert_parallel,
            "moe_layer_pattern": r"gated_blocks\.\d+\.feed_forward\.routed",
            "router_pattern": "gate",
            "expert_pattern": "experts",
            "top_k": experts.top_k,
            "route_norm": experts.top_k > 1,
            # The grouped path calls a Triton kernel, which a CPU does not have.
            "use_grouped_mm": False,
        }
    return merged


def zero_stage(config: RunConfig) -> int:
    return load_strategy(config.engine.strategy).get("zero_optimization", {}).get("stage", 0)


def is_expert_parallel(config: RunConfig) -> bool:
    return (
        config.objective == "flamingo"
        and config.model.experts.num_experts > 1
        and config.model.experts.backend == "stacked"
        and config.engine.expert_parallel > 1
    )
