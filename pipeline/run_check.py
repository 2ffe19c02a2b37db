"""The rules between sections: what the engine or the data would only refuse after a night in the queue.

Imports neither torch nor deepspeed, so that `roseate config check` answers at once.
"""

from data_prep.errors import ConfigError, Problem
from pipeline.batch_plan import check_batch
from pipeline.config import RunConfig
from pipeline.deepspeed_config import load_strategy


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
    problems += check_data(config, world_size) + check_features(config)
    if problems:
        raise ConfigError(problems)


def check_data(config: RunConfig, world_size: int) -> list[Problem]:
    """What does not go together in section `data`."""
    problems = []
    if config.objective != "flamingo":
        if config.data.pack_tokens is not None:
            rule = f"rows of several texts are for objective=flamingo, not {config.objective}"
            remedy = "set data.pack_tokens=null"
            problems.append(Problem("data.pack_tokens", config.data.pack_tokens, rule, remedy))
        return problems
    if config.data.held_out is None and not config.data.held_out_fraction:
        rule = "names a dataset, or data.held_out_fraction is above 0"
        problems.append(Problem("data.held_out", None, rule, "set one of the two"))
    samples = config.train.validate_samples
    if samples < world_size:
        rule = f"gives every one of {world_size} processes a held-out sample"
        remedy = f"set train.validate_samples={world_size} or more"
        problems.append(Problem("train.validate_samples", samples, rule, remedy))
    return problems


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
