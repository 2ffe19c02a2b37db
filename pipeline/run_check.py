"""The rules between sections: what the engine or the data would only refuse after a night in the queue.

Imports neither torch nor deepspeed, so that `roseate config check` answers at once.
"""

from data_prep.engines.settings import engine_problems
from data_prep.errors import ConfigError, Problem
from pipeline.batch_plan import check_batch
from pipeline.config import IngestRunConfig, RunConfig
from pipeline.engine.support import check_engine
from pipeline.evaluation.check import training_problems
from pipeline.tracking.secrets import redact
from pipeline.tracking.server import uri_problem


def check_run(config: RunConfig, world_size: int) -> None:
    """Refuse, before anything starts, what cannot run on `world_size` processes.

    Raises:
        ConfigError: with all problems.
    """
    problems = check_batch(config.batch.global_size, config.batch.micro_size, world_size)
    problems += check_engine(config, world_size)
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
    problems += engine_problems(config.ingest) + check_tracking(config) + check_finetune(config)
    problems += training_problems(config)
    if problems:
        raise ConfigError(problems)


def check_ingest(config: IngestRunConfig) -> None:
    """Refuse, before anything starts, an ingest that its engine cannot do.

    Raises:
        ConfigError: with all problems.
    """
    if problems := engine_problems(config.ingest) + check_tracking(config):
        raise ConfigError(problems)


def check_finetune(config: RunConfig) -> list[Problem]:
    """What does not go together in section `train` where only a part is trained."""
    train, problems = config.train, []
    if train.trainable != "all":
        if config.engine.expert_parallel > 1:
            rule = f"is 1 where train.trainable={train.trainable}: divided experts are all trained"
            key = "engine.expert_parallel"
            problems.append(Problem(key, config.engine.expert_parallel, rule, f"set {key}=1"))
        if train.unfreeze:
            rule = f"is empty where train.trainable={train.trainable}"
            told = f"{len(train.unfreeze)} entries"
            problems.append(Problem("train.unfreeze", told, rule, "leave one of the two out"))
        if train.start_from is None:
            rule = f"is set where train.trainable={train.trainable}: the rest is not trained at all"
            remedy = "name a trained run, e.g. train.start_from=runs/demo/flamingo"
            problems.append(Problem("train.start_from", None, rule, remedy))
    if train.early_stop and train.early_stop.metric != "held_out_loss":
        suites = {f"evaluation/{suite}/" for suite in config.evaluation.suites}
        known = train.early_stop.metric.startswith(tuple(suites))
        if not known or not config.evaluation.every_steps:
            rule = "is held_out_loss, or evaluation/{suite}/{figure} of evaluation.suites, every_steps set"
            remedy = f"suites: {', '.join(config.evaluation.suites)}"
            key = "train.early_stop.metric"
            problems.append(Problem(key, train.early_stop.metric, rule, remedy))
    return problems


def check_tracking(config: IngestRunConfig) -> list[Problem]:
    """A tracking URI that cannot be one; no server is asked."""
    uri = config.tracking.uri
    if not uri or (broken := uri_problem(uri)) is None:
        return []
    return [Problem("tracking.uri", redact(uri), *broken)]


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
