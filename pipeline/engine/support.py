"""Which strategies, experts, optimizers and precisions go together; what does not is refused with what does.

tests/distributed/test_combinations.py tries those that are let through; docs/engine.md has its table.
Imports neither torch nor deepspeed.
"""

from data_prep.errors import ConfigError, Problem
from pipeline.config import RunConfig
from pipeline.engine.deepspeed_config import load_strategy


def check_engine(config: RunConfig, world_size: int) -> list[Problem]:
    """What DeepSpeed would refuse late, or do wrong without a word."""
    # An unknown strategy is not to hide what else is wrong.
    stage, zero, problems = 2, {}, []
    try:
        zero = load_strategy(config.engine.strategy).get("zero_optimization", {})
        stage = zero.get("stage", 0)
    except ConfigError as error:
        problems += error.problems
    if stage == 0 and config.train.precision != "fp32":
        problems.append(
            Problem(
                "train.precision",
                config.train.precision,
                "is fp32 without ZeRO: in half precision DeepSpeed then takes optimizers of its own, "
                "which keep no masters by name",
                "set engine.strategy=zero1, which costs no more, or train.precision=fp32",
            )
        )
    has_experts = config.objective == "flamingo" and config.model.experts.num_experts > 1
    if has_experts:
        offloaded = "offload_optimizer" in zero
        problems += _check_experts(config, world_size, stage, offloaded=offloaded)
    return problems


def _check_experts(
    config: RunConfig, world_size: int, stage: int, *, offloaded: bool
) -> list[Problem]:
    experts, parallel, problems = config.model.experts, config.engine.expert_parallel, []
    native = experts.backend == "native"
    if native and stage in (0, 3):
        why = (
            "does not run under ZeRO-3"
            if stage == 3
            else "counts experts wrong when it clips without ZeRO"
        )
        problems.append(
            Problem(
                "model.experts.backend",
                "native",
                f"DeepSpeed's native MoE {why} (engine.strategy={config.engine.strategy})",
                "set model.experts.backend=stacked, or engine.strategy=zero2",
            )
        )
    if native and parallel > 1:
        problems.append(
            Problem(
                "engine.expert_parallel",
                parallel,
                "expert parallelism runs on stacked experts (DeepSpeed AutoEP)",
                "set model.experts.backend=stacked, or engine.expert_parallel=1",
            )
        )
    if parallel > 1 and stage == 0:
        problems.append(
            Problem(
                "engine.expert_parallel",
                parallel,
                "is 1 without ZeRO: DeepSpeed then clips divided experts by a wrong norm",
                "set engine.strategy=zero1, or engine.expert_parallel=1",
            )
        )
    if parallel > 1 and stage == 3 and offloaded:
        problems.append(
            Problem(
                "engine.expert_parallel",
                parallel,
                f"is 1 under {config.engine.strategy}: with the optimizer on the CPU DeepSpeed's ZeRO-3 "
                "counts divided experts wrong in the norm that clips",
                "set engine.strategy=zero3 or zero2_offload, or engine.expert_parallel=1",
            )
        )
    if parallel > 1 and config.train.precision == "fp16":
        problems.append(
            Problem(
                "engine.expert_parallel",
                parallel,
                "is 1 in fp16: with divided experts DeepSpeed's overflow and norm are not the run's",
                "set train.precision=bf16, or engine.expert_parallel=1",
            )
        )
    if parallel > 1 and experts.capacity_factor is not None:
        problems.append(
            Problem(
                "model.experts.capacity_factor",
                experts.capacity_factor,
                f"experts divided over ranks (engine.expert_parallel={parallel}) lose no token",
                "set model.experts.capacity_factor=null, or engine.expert_parallel=1",
            )
        )
    for count, what in (
        (world_size, f"the number of processes ({world_size})"),
        (experts.num_experts, f"model.experts.num_experts={experts.num_experts}"),
    ):
        if count % parallel:
            problems.append(
                Problem(
                    "engine.expert_parallel",
                    parallel,
                    f"divides {what}",
                    "choose a divisor, e.g. engine.expert_parallel=1",
                )
            )
    return problems
