"""What a strategy file asks of ZeRO, with DeepSpeed's own values where it says nothing."""

from dataclasses import dataclass

from pipeline.engine.deepspeed_config import STRATEGIES, load_strategy


@dataclass(frozen=True)
class Strategy:
    """Section `zero_optimization`; counts are elements, as DeepSpeed counts.

    Attributes:
        name: of the file in deepspeed_configs/.
        stage: of ZeRO.
        reduce_bucket: gradients that are reduced together.
        overlaps: whether there are two such buckets (ZeRO-1 and 2).
        contiguous: whether gradients are copied into the bucket.
        persistent: parameters with no more elements stay whole (ZeRO-3).
        live: parameters that are gathered at the same time, at most (ZeRO-3).
        prefetch: parameters that are gathered together (ZeRO-3).
        step_group: parameters of a rank that are stepped together (ZeRO-3).
        optimizer_on_cpu: masters, moments and their gradients lie in the memory of the node.
        weights_on_cpu: a rank's part of the weights too (ZeRO-3).
    """

    name: str
    stage: int = 0
    reduce_bucket: int = 500_000_000
    overlaps: bool = False
    contiguous: bool = True
    persistent: int = 100_000
    live: int = 1_000_000_000
    prefetch: int = 50_000_000
    step_group: int = 1_000_000_000
    optimizer_on_cpu: bool = False
    weights_on_cpu: bool = False


KEYS = {
    "stage": "stage",
    "reduce_bucket_size": "reduce_bucket",
    "overlap_comm": "overlaps",
    "contiguous_gradients": "contiguous",
    "stage3_param_persistence_threshold": "persistent",
    "stage3_max_live_parameters": "live",
    "stage3_prefetch_bucket_size": "prefetch",
    "sub_group_size": "step_group",
}


def read_strategy(name: str) -> Strategy:
    """Read a file of deepspeed_configs/.

    Raises:
        ConfigError: there is no such file, or it says more than how to shard.
    """
    zero = load_strategy(name).get("zero_optimization", {})
    values = {field: zero[key] for key, field in KEYS.items() if zero.get(key) is not None}
    for field, section in (
        ("optimizer_on_cpu", "offload_optimizer"),
        ("weights_on_cpu", "offload_param"),
    ):
        values[field] = (zero.get(section) or {}).get("device", "none") != "none"
    return Strategy(name, **values)


def all_strategies() -> list[Strategy]:
    """Every file of deepspeed_configs/, by stage."""
    found = [read_strategy(path.stem) for path in STRATEGIES.glob("*.json")]
    return sorted(found, key=lambda s: (s.stage, s.optimizer_on_cpu, s.weights_on_cpu, s.name))
