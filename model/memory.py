"""Memory per GPU by ZeRO stage, from the parameters of a plan."""

from model.plan import EXPERTS, ModelPlan

STAGES = (0, 1, 2, 3)
MASTER_BYTES = 4
# Two fp32 moments; two codes of one byte and a fp32 scale for each block of 256 of them.
STATE_BYTES = {32: 8.0, 8: 2 + 2 * 4 / 256}


def compute_memory(
    plan: ModelPlan,
    *,
    stage: int,
    world_size: int,
    num_32bit: int,
    weight_bytes: int = 2,
    expert_parallel: int = 1,
) -> dict[str, float]:
    """Bytes on one GPU that stay from step to step; no activations, buckets or fragments.

    Args:
        plan: of the model.
        stage: of ZeRO, 0 to 3.
        world_size: GPUs, d.
        num_32bit: trainable parameters with two fp32 states; the others have 8-bit ones.
        weight_bytes: of a weight and of a gradient: 2 in bf16, 4 in fp32.
        expert_parallel: ranks that the experts are divided over where ZeRO does not.

    Returns:
        weights, frozen, gradients, master, states, total.

    Source: the table of docs/model.md, after ZeRO (arXiv:1910.02054) section 5 and what DeepSpeed's
        optimizers hold.
    """
    total = plan.total
    experts = sum(part.trainable for part in plan.parts if part.name == EXPERTS)
    parallel = min(expert_parallel, world_size)
    here = total.trainable - experts + experts / parallel
    shard = total.trainable / world_size
    share_32bit = num_32bit / max(total.trainable, 1)
    state_bytes = share_32bit * STATE_BYTES[32] + (1 - share_32bit) * STATE_BYTES[8]
    optimized = shard if stage >= 1 else here
    memory = {
        "weights": weight_bytes * (shard if stage == 3 else here),
        "frozen": weight_bytes * total.frozen / (world_size if stage == 3 else 1),
        "gradients": weight_bytes * (shard if stage >= 2 else here),
        "master": MASTER_BYTES * optimized,
        "states": state_bytes * optimized,
    }
    return memory | {"total": sum(memory.values())}
