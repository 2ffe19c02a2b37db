"""What a person asks of a plan, and whether it can be asked."""

from dataclasses import dataclass

from data_prep.errors import ConfigError, Problem
from pipeline.config import RunConfig
from pipeline.plan.gpus import Gpu, find_gpu
from pipeline.run_check import check_run


@dataclass(frozen=True)
class PlanOptions:
    """What the command line asks.

    Attributes:
        gpu: name in the table.
        nodes: machines.
        gpus_per_node: None for as many as the table says.
        mfu: None for the default.
        price_per_hour: dollars for a GPU and hour, None for the table's.
        tokens: text tokens of a sample, None for `data.max_text_tokens`.
        images: of a sample.
    """

    gpu: str = "h100-80gb"
    nodes: int = 1
    gpus_per_node: int | None = None
    mfu: float | None = None
    price_per_hour: float | None = None
    tokens: int | None = None
    images: int = 1


def check_options(config: RunConfig, options: PlanOptions) -> tuple[Gpu, int, str]:
    """The GPU, GPUs per node and precision.

    Raises:
        ConfigError: with all problems.
    """
    problems, gpu = [], None
    try:
        gpu = find_gpu(options.gpu)
    except ConfigError as error:
        problems += error.problems
    per_node = options.gpus_per_node or (gpu.per_node if gpu else 1)
    for name, value, low in (
        ("--nodes", options.nodes, 1),
        ("--gpus-per-node", options.gpus_per_node, 1),
        ("--tokens", options.tokens or config.data.max_text_tokens, max(1, options.images)),
        ("--images", options.images, 1),
    ):
        if value is not None and value < low:
            problems.append(Problem(name, value, f"is at least {low}", f"give {low} or more"))
    if options.mfu is not None and not 0 < options.mfu <= 1:
        rule = "is the share of the peak that a step reaches: above 0, at most 1"
        problems.append(Problem("--mfu", options.mfu, rule, "give 0.35, or what you measured"))
    if options.price_per_hour is not None and options.price_per_hour < 0:
        rule = "is dollars for a GPU and hour, 0 or more"
        problems.append(Problem("--price-per-hour", options.price_per_hour, rule, "e.g. 2.5"))
    pack, tokens = config.data.pack_tokens, options.tokens or 0
    if pack and tokens > pack:
        rule = f"fits a row of data.pack_tokens={pack}"
        problems.append(Problem("--tokens", tokens, rule, f"give {pack} or less"))
    if config.objective != "flamingo":
        rule = "is flamingo: the small towers of the other objectives fit anything"
        problems.append(Problem("objective", config.objective, rule, "plan the Flamingo instead"))
    precision = config.train.precision
    if gpu and precision == "auto":
        precision = "bf16" if "bf16" in gpu.tflops else "fp32"
    if gpu and precision not in gpu.tflops:
        rule = f"is multiplied by the GPU, which {gpu.name} does not do"
        remedy = f"set train.precision to one of: auto, {', '.join(gpu.tflops)}"
        problems.append(Problem("train.precision", precision, rule, remedy))
    if gpu and precision in gpu.tflops:
        # What `auto` will be there.
        train = config.train.model_copy(update={"precision": precision})
        config = config.model_copy(update={"train": train})
    try:
        check_run(config, max(1, options.nodes * per_node))
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return gpu, per_node, precision
