"""Bytes on one GPU that weights and optimizer take, by ZeRO stage, and those of a step beside them.

Measured against DeepSpeed 0.19 on 1, 2 and 4 processes (tests/distributed/test_plan_memory.py), and what
cannot be seen on a CPU read in its source; comments say where it differs from the table of ZeRO
(arXiv:1910.02054) section 5. All figures are of the rank that has most.
"""

from dataclasses import dataclass

from pipeline.plan.parameters import ParameterGroup, Parameters
from pipeline.plan.strategy import Strategy

MASTER_BYTES = 4
# Bytes of one moment: fp32; a code of one byte and a fp32 scale for each block of 256.
MOMENT_BYTES = {32: 4.0, 8: 1 + 4 / 256}
# Without ZeRO DeepSpeed joins so many gradients to reduce them (MEMORY_OPT_ALLREDUCE_SIZE).
PLAIN_BUCKET = 500_000_000


@dataclass(frozen=True)
class Trained:
    """How a model is trained, as far as its weights are concerned.

    Attributes:
        parameters: of the model.
        world_size: GPUs.
        precision: fp32, bf16 or fp16.
        optimizer: `optim.name`.
        accumulation_steps: forward and backward passes in a step.
        min_8bit_numel: a parameter with fewer elements keeps 32-bit moments.
    """

    parameters: Parameters
    world_size: int
    precision: str
    optimizer: str
    accumulation_steps: int = 1
    min_8bit_numel: int = 4096

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight and of a gradient."""
        return 4 if self.precision == "fp32" else 2

    @property
    def moments(self) -> int:
        """Moments that the optimizer keeps of each element."""
        return 1 if self.optimizer.startswith("lion") else 2

    def share(self, stage: int) -> int:
        """Elements of a rank's part of all groups."""
        return sum(group.share(stage, self.world_size) for group in self.parameters.groups)

    def largest_share(self, stage: int) -> int:
        """Elements of a rank's part of the largest group."""
        return max(group.share(stage, self.world_size) for group in self.parameters.groups)


def compute_standing(trained: Trained, strategy: Strategy) -> dict[str, float]:
    """What stays from step to step, and the gradients that a backward pass leaves to the step.

    Returns:
        weights, frozen, whole, gradients, master, moments_8bit, moments_32bit: bytes.
    """
    stage, world_size = strategy.stage, trained.world_size
    parameters, size = trained.parameters, trained.weight_bytes
    moments = {8: 0.0, 32: 0.0}
    for group in parameters.groups:
        for bits, numel in _moment_elements(group, stage, trained).items():
            moments[bits] += trained.moments * MOMENT_BYTES[bits] * numel
    frozen = sum(-(-n // world_size) if stage == 3 else n for n in parameters.frozen)
    if stage == 3:
        weights = trained.share(3)
        # Gathered once and kept so, since small messages cost more than the memory.
        gathered = parameters.gathered_sizes(world_size)
        whole = sum(n for n in gathered if n <= strategy.persistent)
    else:
        padded = stage > 0
        weights = sum(
            group.joined(world_size) if padded else sum(group.sizes) for group in parameters.groups
        )
        whole = 0
    return {
        "weights": float(size * weights),
        "frozen": float(size * frozen),
        "whole": float(size * whole),
        "gradients": float(size * _gradient_elements(trained, stage)),
        "master": float(MASTER_BYTES * _master_elements(trained, stage)),
        "moments_8bit": moments[8],
        "moments_32bit": moments[32],
    }


def compute_passing(trained: Trained, strategy: Strategy) -> dict[str, float]:
    """What comes and goes within a step, activations aside.

    Returns:
        buckets: of gradients on their way, while the backward pass runs.
        gathered: weights of other ranks (ZeRO-3), while a pass runs.
        update: copies that reduction or update need when no activations are left, the larger.
    """
    stage, size, parameters = strategy.stage, trained.weight_bytes, trained.parameters
    buckets = gathered = reduced = 0
    if stage:
        buckets = strategy.contiguous * strategy.reduce_bucket
        buckets *= 2 if strategy.overlaps and stage < 3 else 1
    if stage >= 2:
        buckets += parameters.largest()  # a gradient is there whole before it is copied
    elif stage == 1:
        # When the activations are gone, and before the gradients of others' parts are let go.
        reduced = parameters.touched(trained.world_size)
    elif trained.world_size > 1:
        reduced = min(parameters.trained_numel, PLAIN_BUCKET)
    if stage == 3:
        sizes = parameters.gathered_sizes(trained.world_size)
        divided = [n for n in sizes if n > strategy.persistent]
        gathered = min(sum(divided), max(strategy.live, max(divided, default=0)))
        # What arrives together lies in one tensor before it is copied to its places, or viewed there.
        coming = [n for n in parameters.all_sizes() if n > strategy.persistent]
        gathered += min(sum(coming), max(strategy.prefetch, max(coming, default=0)))
    return {
        "buckets": float(size * buckets),
        "gathered": float(size * gathered),
        "update": float(max(_update_bytes(trained, strategy), size * reduced)),
    }


def move_to_host(figures: dict[str, float], trained: Trained, strategy: Strategy) -> float:
    """Take off the GPU what the strategy keeps in the memory of the node.

    Args:
        figures: of `compute_standing` and `compute_passing`; changed.
        trained: see there.
        strategy: likewise.

    Returns:
        bytes in the memory of the node, for each process.
    """
    host = 0.0
    if strategy.optimizer_on_cpu:
        moved = ("master", "moments_8bit", "moments_32bit")
        host += sum(figures[name] for name in moved)
        figures |= dict.fromkeys((*moved, "update"), 0.0)
        # Gradients in fp32 stay beside the masters, and under ZeRO-3 the divided ones too.
        share = trained.share(strategy.stage)
        host += (MASTER_BYTES + trained.weight_bytes) * share
        if strategy.stage >= 2:
            # On the GPU there is but one parameter's on its way.
            figures["gradients"] = float(trained.weight_bytes * trained.parameters.largest())
    if strategy.weights_on_cpu and strategy.stage == 3:
        host += figures["weights"] + figures["frozen"]
        figures |= {"weights": 0.0, "frozen": 0.0}
    return host


def _gradient_elements(trained: Trained, stage: int) -> int:
    """Of what the backward pass holds when it ends."""
    if stage == 3:
        return trained.share(3)  # one flat tensor, for good
    if stage < 2:
        # ZeRO-1 divides gradients only after the last backward pass of a step.
        return trained.parameters.trained_numel
    # ZeRO-2 keeps parameters that reach into its part whole: stacked experts are as large as many
    # parts. A second micro-batch has its own before they are added to the first one's.
    copies = 2 if trained.accumulation_steps > 1 else 1
    return copies * trained.parameters.touched(trained.world_size)


def _master_elements(trained: Trained, stage: int) -> int:
    """Every stage of ZeRO copies the weights to fp32, fp32 weights too; without ZeRO fp32 has none."""
    return 0 if stage == 0 and trained.precision == "fp32" else trained.share(stage)


def _moment_elements(group: ParameterGroup, stage: int, trained: Trained) -> dict[int, float]:
    """Elements by the bits of their moments."""
    share = group.share(stage, trained.world_size)
    if group.bits == 32 or not trained.optimizer.endswith("_8bit"):
        return {32: share}
    # Blocks that a rank boundary cuts keep 32 bits (`pipeline.engine.blockwise`). ZeRO-1 and 2 cut at
    # the two ends of a part, which is nothing; ZeRO-3 cuts every parameter.
    exact = sum(size for size in group.sizes if size < trained.min_8bit_numel) / max(
        1, sum(group.sizes)
    )
    cut = 0
    ranks = group.ranks(trained.world_size)
    if stage == 3 and ranks > 1:
        parts = (-(-size // ranks) for size in group.sizes if size >= trained.min_8bit_numel)
        # Half a block at each end, on the mean.
        cut = sum(min(part, 256) for part in parts if part % 256)
    exact_numel = min(share, exact * share + cut)
    return {8: share - exact_numel, 32: exact_numel}


def _update_bytes(trained: Trained, strategy: Strategy) -> int:
    """Copies of gradients in fp32, of one group at a time, and what AdamW of torch needs beside them."""
    stage, size = strategy.stage, trained.weight_bytes
    numel = trained.largest_share(stage)
    if stage == 3:
        numel = min(numel, strategy.step_group)
    scratch = 0 if trained.optimizer.endswith("_8bit") else MASTER_BYTES  # of its multi-tensor form
    if stage == 0:
        copies = 0 if trained.precision == "fp32" else MASTER_BYTES * trained.share(0)
        return copies + scratch * numel
    # The parts of a group are joined, then cast.
    joined = size if size < MASTER_BYTES else 0
    return (joined + MASTER_BYTES + scratch) * numel
