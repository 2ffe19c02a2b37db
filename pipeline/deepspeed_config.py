"""A strategy file of deepspeed_configs/ + RunConfig + BatchPlan -> the dict given to DeepSpeed; and the rules
between sections that the engine would only refuse after a night in the queue.

Plain dicts: this module does not import deepspeed.
"""

import json
from pathlib import Path

from data_prep.errors import ConfigError, Problem
from pipeline.batch_plan import BatchPlan, check_batch
from pipeline.config import RunConfig

STRATEGIES = Path(__file__).parent.parent / "deepspeed_configs"
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


def check_run(config: RunConfig, world_size: int) -> None:
    """Refuse, before anything starts, what cannot run on `world_size` processes.

    Raises:
        ConfigError: with all problems.
    """
    problems = check_batch(config.batch.global_size, config.batch.micro_size, world_size)
    stage = 0
    try:
        strategy = load_strategy(config.engine.strategy)
        stage = strategy.get("zero_optimization", {}).get("stage", 0)
    except ConfigError as error:
        problems += error.problems
    experts, parallel = config.model.experts, config.engine.expert_parallel
    has_experts = config.objective == "flamingo" and experts.num_experts > 1
    if has_experts and experts.backend == "native" and stage == 3:
        problems.append(
            Problem(
                "model.experts.backend",
                "native",
                "DeepSpeed's native MoE does not run under ZeRO-3 (engine.strategy="
                f"{config.engine.strategy})",
                "set model.experts.backend=stacked, or engine.strategy=zero2",
            )
        )
    if has_experts and experts.backend == "native" and parallel > 1:
        problems.append(
            Problem(
                "engine.expert_parallel",
                parallel,
                "expert parallelism runs on stacked experts (DeepSpeed AutoEP)",
                "set model.experts.backend=stacked, or engine.expert_parallel=1",
            )
        )
    if has_experts and experts.capacity_factor is not None and parallel > 1:
        problems.append(
            Problem(
                "model.experts.capacity_factor",
                experts.capacity_factor,
                f"experts divided over ranks (engine.expert_parallel={parallel}) lose no token",
                "set model.experts.capacity_factor=null, or engine.expert_parallel=1",
            )
        )
    if has_experts and world_size % parallel:
        problems.append(
            Problem(
                "engine.expert_parallel",
                parallel,
                f"divides the number of processes ({world_size})",
                "choose a divisor, e.g. engine.expert_parallel=1",
            )
        )
    if has_experts and experts.num_experts % parallel:
        problems.append(
            Problem(
                "engine.expert_parallel",
                parallel,
                f"divides model.experts.num_experts={experts.num_experts}",
                "choose a divisor, e.g. engine.expert_parallel=1",
            )
        )
    if config.objective != "flamingo" and config.data.pack_tokens is not None:
        problems.append(
            Problem(
                "data.pack_tokens",
                config.data.pack_tokens,
                f"rows of several texts are for objective=flamingo, not {config.objective}",
                "set data.pack_tokens=null",
            )
        )
    if config.objective == "contrastive" and config.batch.global_size != (
        config.batch.micro_size * world_size
    ):
        problems.append(
            Problem(
                "batch.micro_size",
                config.batch.micro_size,
                "InfoNCE compares within one forward pass: micro_size x world_size = global_size",
                f"set batch.micro_size={max(1, config.batch.global_size // world_size)}",
            )
        )
    problems += check_features(config)
    if problems:
        raise ConfigError(problems)


def check_features(config: RunConfig) -> list[Problem]:
    """What does not go with features of images in place of images (`data.features`)."""
    folder, image, off = config.data.features, config.data.image, "or data.features=null"
    if folder is None:
        return []
    still = {"crop_area": 1.0, "flip_ratio": 0.0, "drop_ratio": 0.0}
    problems = [
        Problem(
            f"data.image.{name}",
            getattr(image, name),
            "with data.features images are as they are stored: nothing is drawn at random",
            f"set data.image.{name}={value:g}, {off}",
        )
        for name, value in still.items()
        if getattr(image, name) != value
    ]
    if "://" in folder:
        rule = "is a folder on a disk, or on a file system that all nodes see"
        problems.append(Problem("data.features", folder, rule, "give a path"))
    if config.objective != "flamingo":
        rule = f"is for objective=flamingo; {config.objective} trains without a frozen image tower"
        problems.append(Problem("data.features", folder, rule, "set data.features=null"))
    return problems


def build_deepspeed_config(config: RunConfig, plan: BatchPlan, precision: str) -> dict:
    """The whole dict for `deepspeed.initialize`; every number concrete, no "auto"."""
    merged = load_strategy(config.engine.strategy)
    merged |= {
        "train_batch_size": plan.global_size,
        "train_micro_batch_size_per_gpu": plan.micro_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "gradient_clipping": config.optim.clip_norm,
        "bf16": {"enabled": precision == "bf16"},
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
