"""What a GPU can hold, compute and send: figures of the makers' data sheets, and assumed prices."""

import difflib
from dataclasses import dataclass

from data_prep.errors import ConfigError, Problem

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU in a machine as it is usually rented.

    Attributes:
        name: as in `--gpu`.
        memory_bytes: that the driver reports as total, which is less than the name says.
        tflops: dense peak of matrix products by precision, without sparsity; fp32 without TF32, which
            torch leaves off and nothing here turns on. A precision that is absent is not multiplied
            by the hardware.
        per_node: GPUs of a node.
        link_bytes: per second and direction between two GPUs of a node.
        network_bytes: per second and direction out of a node, all its adapters together.
        watts: of the board at its limit.
        dollars_per_hour: an assumption, about what clouds asked without a contract in 2025.
    """

    name: str
    memory_bytes: float
    tflops: dict[str, float]
    per_node: int
    link_bytes: float
    network_bytes: float
    watts: float
    dollars_per_hour: float


def _gpu(
    name: str,
    gib: float,
    half: float,
    fp32: float,
    *,
    gigabytes: tuple[float, float],
    watts: float,
    dollars: float,
    per_node: int = 8,
    bf16: bool = True,
) -> Gpu:
    """A row of the table; `gigabytes` a second are those of the link and of the node's network."""
    tflops = {"fp32": fp32, "fp16": half} | ({"bf16": half} if bf16 else {})
    link, network = (1e9 * speed for speed in gigabytes)
    return Gpu(name, gib * GIB, tflops, per_node, link, network, watts, dollars)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu(
            "v100-32gb", 31.7, 125, 15.7, gigabytes=(150, 12.5), watts=300, dollars=0.6, bf16=False
        ),
        _gpu("a100-40gb", 39.4, 312, 19.5, gigabytes=(300, 100), watts=400, dollars=1.3),
        _gpu("a100-80gb", 79.2, 312, 19.5, gigabytes=(300, 200), watts=400, dollars=1.8),
        _gpu("l4-24gb", 22.0, 121, 30.3, gigabytes=(25, 12.5), watts=72, dollars=0.7),
        _gpu("l40s-48gb", 44.4, 362, 91.6, gigabytes=(25, 50), watts=350, dollars=1.2),
        _gpu("h100-80gb", 79.2, 989, 66.9, gigabytes=(450, 400), watts=700, dollars=3.0),
        _gpu("h200-141gb", 139.8, 989, 66.9, gigabytes=(450, 400), watts=700, dollars=3.8),
        _gpu("b200-180gb", 178.4, 2250, 75.0, gigabytes=(900, 400), watts=1000, dollars=5.5),
        _gpu("mi300x-192gb", 191.9, 1307, 163.4, gigabytes=(448, 400), watts=750, dollars=3.0),
    )
}


def recognise_gpu(told: str) -> Gpu | None:
    """The first of the table that a driver's name for a GPU means, such as ``NVIDIA H100 80GB HBM3``."""
    words = told.lower().replace(" ", "-").split("-")
    return next((gpu for name, gpu in GPUS.items() if name.partition("-")[0] in words), None)


def find_gpu(name: str) -> Gpu:
    """Look a GPU up.

    Raises:
        ConfigError: the table has no such GPU.
    """
    if name in GPUS:
        return GPUS[name]
    close = difflib.get_close_matches(name.lower(), GPUS, n=1, cutoff=0.3)
    hint = f"did you mean {close[0]}? " if close else ""
    rule = "is a GPU that the planner knows"
    raise ConfigError([Problem("--gpu", name, rule, f"{hint}known: {', '.join(GPUS)}")])
