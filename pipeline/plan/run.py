"""A run before it is started: does it fit, how long does it take, what does it cost."""

from dataclasses import dataclass, replace

from data_prep.errors import ConfigError
from model.plan import ModelPlan, compute_plan
from pipeline.config import RunConfig
from pipeline.plan.activations import Activations
from pipeline.plan.gpus import GIB, Gpu
from pipeline.plan.memory import Trained, compute_passing, compute_standing, move_to_host
from pipeline.plan.model import DTYPES, build_planned, coming_towers
from pipeline.plan.options import PlanOptions, check_options
from pipeline.plan.parameters import list_parameters
from pipeline.plan.strategy import Strategy, all_strategies
from pipeline.plan.throughput import Flops, Speed, compute_flops, compute_speed
from pipeline.run_check import check_run

# Assumed, since it can only be measured where the run will be: the CUDA context with its kernels and
# workspaces, NCCL's buffers, and what the allocator holds in pieces too small to use.
CONTEXT_BYTES = 2 * GIB
FRAGMENTATION = 0.05
# Parts that are there during the backward pass, and during the update.
STANDING = ("weights", "frozen", "whole", "gradients", "master", "moments_8bit", "moments_32bit")
BACKWARD = ("buckets", "gathered", "activations", "working")


@dataclass(frozen=True)
class StrategyPlan:
    """A run under one strategy; bytes on one GPU.

    Attributes:
        strategy: of deepspeed_configs/.
        parts: `STANDING`, `BACKWARD`, ``update`` and ``reserve``.
        total: of the fuller of the two moments, reserve included.
        host_bytes: in the memory of the node, for each process.
        fits: on the GPU.
        runs: the engine takes it for this configuration.
        largest_micro: largest batch.micro_size that fits, 0 for none.
        speed: seconds of a step.
    """

    strategy: Strategy
    parts: dict[str, float]
    total: float
    host_bytes: float
    fits: bool
    runs: bool
    largest_micro: int
    speed: Speed


@dataclass(frozen=True)
class RunPlan:
    """All figures.

    Attributes:
        config: the run.
        options: as given.
        gpu: of the table.
        gpus_per_node: of the options or the table.
        trained: how its weights are trained.
        model: plan of the model, for one row.
        samples_per_row: samples that a row holds when rows are packed.
        flops: of a row.
        mfu: stated.
        strategies: by stage.
        to_train: keys of towers that are yet to be trained.
    """

    config: RunConfig
    options: PlanOptions
    gpu: Gpu
    gpus_per_node: int
    trained: Trained
    model: ModelPlan
    samples_per_row: int
    flops: Flops
    mfu: float
    strategies: list[StrategyPlan]
    to_train: list[str]

    @property
    def chosen(self) -> StrategyPlan:
        """What engine.strategy says."""
        name = self.config.engine.strategy
        return next(plan for plan in self.strategies if plan.strategy.name == name)

    @property
    def best(self) -> StrategyPlan | None:
        """Of those that fit, the one with the least on the wires; offloading only where it must be."""
        fitting = [plan for plan in self.strategies if plan.fits and plan.runs]
        return min(
            fitting, key=lambda p: (p.host_bytes > 0, p.speed.wire_seconds, p.total), default=None
        )

    @property
    def price_per_hour(self) -> float:
        """Dollars for a GPU and hour."""
        price = self.options.price_per_hour
        return self.gpu.dollars_per_hour if price is None else price

    @property
    def tokens_per_sample(self) -> int:
        """Text tokens, padding included."""
        return self.options.tokens or self.config.data.max_text_tokens


def plan_run(config: RunConfig, options: PlanOptions) -> RunPlan:
    """Compute everything.

    Raises:
        ConfigError: with every mistake in the options and everything that the run would be refused for.
    """
    gpu, per_node, precision = check_options(config, options)
    world_size = options.nodes * per_node
    model = build_planned(config, DTYPES[precision])
    tokens = options.tokens or config.data.max_text_tokens
    per_row = max(1, config.data.pack_tokens // tokens) if config.data.pack_tokens else 1
    row_tokens = config.data.pack_tokens or tokens
    plan = compute_plan(model, num_tokens=row_tokens, num_images=per_row * options.images)
    trained = Trained(
        list_parameters(model, config, world_size),
        world_size,
        precision,
        config.optim.name,
        config.batch.global_size // (config.batch.micro_size * world_size),
        config.optim.min_8bit_numel,
    )
    checkpointing = config.train.activation_checkpointing
    losses = config.loss
    activations = Activations(
        plan,
        first_layer=model.fused_layers[0],
        passes=2 if losses.language or losses.contrastive else 1,
        checkpointing=checkpointing,
        weight_bytes=trained.weight_bytes,
    )
    flops = compute_flops(
        plan,
        first_layer=model.fused_layers[0],
        checkpointing=checkpointing,
        has_features=config.data.features is not None,
    )
    mfu = flops.default_mfu if options.mfu is None else options.mfu
    rows_per_step = config.batch.global_size / world_size / per_row
    strategies = []
    for strategy in all_strategies():
        speed = compute_speed(
            trained,
            strategy,
            gpu,
            nodes=options.nodes,
            step_flops=rows_per_step * flops.model,
            mfu=mfu,
        )
        strategies.append(
            _plan_strategy(trained, strategy, activations, gpu, config, per_row, speed)
        )
    return RunPlan(
        *(config, options, gpu, per_node, trained, plan, per_row, flops, mfu, strategies),
        to_train=coming_towers(config),
    )


def _plan_strategy(
    trained: Trained,
    strategy: Strategy,
    activations: Activations,
    gpu: Gpu,
    config: RunConfig,
    per_row: int,
    speed: Speed,
) -> StrategyPlan:
    def measure(micro_size: int) -> tuple[dict[str, float], float, float]:
        share = config.batch.global_size / trained.world_size
        steps = max(1, int(share // micro_size))
        run = replace(trained, accumulation_steps=steps)
        parts = compute_standing(run, strategy) | compute_passing(run, strategy)
        host = move_to_host(parts, run, strategy)
        rows = -(-micro_size // per_row)
        parts["activations"] = rows * activations.kept
        parts["working"] = activations.working(rows)
        standing = sum(parts[name] for name in STANDING)
        peak = standing + max(sum(parts[name] for name in BACKWARD), parts["update"])
        parts["reserve"] = CONTEXT_BYTES + FRAGMENTATION * peak
        return parts, peak + parts["reserve"], host

    parts, total, host = measure(config.batch.micro_size)
    divisors = _micro_sizes(config.batch.global_size, trained.world_size)
    fitting = [size for size in divisors if measure(size)[1] <= gpu.memory_bytes]
    return StrategyPlan(
        *(strategy, parts, total, host, total <= gpu.memory_bytes),
        runs=_runs(config, strategy, trained),
        largest_micro=max(fitting, default=0),
        speed=speed,
    )


def _runs(config: RunConfig, strategy: Strategy, trained: Trained) -> bool:
    """Whether the engine takes the run under another strategy."""
    engine = config.engine.model_copy(update={"strategy": strategy.name})
    train = config.train.model_copy(update={"precision": trained.precision})
    try:
        check_run(config.model_copy(update={"engine": engine, "train": train}), trained.world_size)
    except ConfigError:
        return False
    return True


def _micro_sizes(global_size: int, world_size: int) -> list[int]:
    """What batch.micro_size may be."""
    share = global_size // world_size
    return [size for size in range(1, share + 1) if share % size == 0]
