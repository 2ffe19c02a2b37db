"""How long a run takes and what it costs, from FLOPs, a stated utilisation, and bytes on the wires."""

from dataclasses import dataclass

from model.plan import CROSS_ATTENTION, EXPERTS, FEED_FORWARDS, ModelPlan, tower_part
from pipeline.plan.gpus import Gpu
from pipeline.plan.memory import Trained
from pipeline.plan.strategy import Strategy

# Share of the peak at which matrix products of a training step run, recomputation included. Published:
# 0.33 to 0.39 for Llama 3 8B on 8 H100 (torchtitan), 0.30 to 0.40 for vision-language models of 7B on
# 32 A800 (LMMs-Engine), 0.12 in a debugging run of IDEFICS.
UTILISATION = 0.35


@dataclass(frozen=True)
class Flops:
    """Of one row; a multiplication and an addition are two.

    Attributes:
        forward: of all parts; the frozen towers once per image.
        backward: weights of trained parts, inputs where a gradient must pass.
        recomputed: forward of layers and blocks once more, with activation checkpointing.
    """

    forward: float
    backward: float
    recomputed: float

    @property
    def model(self) -> float:
        """What the mathematics asks for, as in the MFU of PaLM (arXiv:2204.02311, appendix B)."""
        return self.forward + self.backward

    @property
    def default_mfu(self) -> float:
        """`UTILISATION` less what recomputation takes, which is no use to the model."""
        return UTILISATION * self.model / (self.model + self.recomputed)


@dataclass(frozen=True)
class Speed:
    """Of a run under one strategy.

    Attributes:
        compute_seconds: of a step at the stated MFU.
        wire_seconds: of a step for communication alone, at full speed of the wires.
    """

    compute_seconds: float
    wire_seconds: float

    @property
    def step_seconds(self) -> float:
        """As if communication hid behind computation, or the other way round, whole."""
        return max(self.compute_seconds, self.wire_seconds)

    @property
    def bound_by(self) -> str:
        """What a step waits for."""
        return "wires" if self.wire_seconds > self.compute_seconds else "computation"


def compute_flops(
    plan: ModelPlan, *, first_layer: int, checkpointing: bool, has_features: bool
) -> Flops:
    """FLOPs of one row of the plan.

    Args:
        plan: of the model.
        first_layer: decoder layer that the first gated block stands before.
        checkpointing: whether activations are computed again.
        has_features: images come as features from a cache: the towers do not run.
    """
    total = plan.total
    blocks = {CROSS_ATTENTION, FEED_FORWARDS, EXPERTS}
    again = sum(forward for forward, _ in plan.layer_flops[first_layer:])
    again += sum(part.forward_flops for part in plan.parts if part.name in blocks)
    towers = {tower_part(media.kind) for media in plan.media} if has_features else ()
    saved = sum(part.forward_flops for part in plan.parts if part.name in towers)
    return Flops(
        forward=plan.num_tokens * (total.forward_flops - saved),
        backward=plan.num_tokens * total.backward_flops,
        recomputed=plan.num_tokens * again if checkpointing else 0.0,
    )


def wire_bytes(trained: Trained, strategy: Strategy) -> float:
    """Bytes that a GPU must receive in a step for ZeRO; tokens on the way to divided experts left out.

    Source: ZeRO (arXiv:1910.02054) section 7, with a reduction for every micro-batch under ZeRO-2 and 3
        as DeepSpeed does it.
    """
    stage, micro = strategy.stage, trained.accumulation_steps
    gradients = trained.weight_bytes * trained.parameters.trained_numel
    everything = trained.weight_bytes * sum(trained.parameters.all_sizes())
    per_step = {
        0: 2 * gradients,
        1: 2 * gradients,
        2: (micro + 1) * gradients,
        # The weights once for the forward and once for the backward.
        3: micro * (2 * everything + gradients),
    }[stage]
    return per_step * (trained.world_size - 1) / trained.world_size


def compute_speed(
    trained: Trained,
    strategy: Strategy,
    gpu: Gpu,
    *,
    nodes: int,
    step_flops: float,
    mfu: float,
) -> Speed:
    """Seconds of a step.

    Args:
        trained: the run.
        strategy: how it is sharded.
        gpu: of the table.
        nodes: machines.
        step_flops: of the model, on one GPU in a step.
        mfu: share of the peak that they reach.
    """
    # Rings enter a node once, through all of its adapters; within it every GPU must receive it all.
    wire = gpu.link_bytes if nodes == 1 else min(gpu.link_bytes, gpu.network_bytes)
    compute = step_flops / (mfu * 1e12 * gpu.tflops[trained.precision])
    return Speed(compute, wire_bytes(trained, strategy) / wire)
