"""Model FLOPs utilisation: what the mathematics of a step asks for, over what the devices could do.

    MFU = (tokens x flops per token + images x flops per image) / (seconds x devices x peak)

Source: PaLM (arXiv:2204.02311) appendix B. FLOPs are counted on the model itself (`model.plan`), frozen
parts with their forward alone; what activation checkpointing computes again does not count.
"""

import time
from dataclasses import dataclass

import torch

from model.plan import compute_plan, resampler_part, tower_part
from pipeline.config import RunConfig
from pipeline.plan.gpus import recognise_gpu
from pipeline.plan.model import DTYPES, build_planned

# Of the square matrices whose product is timed: long against what it takes to begin one.
MEASURED_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of forward and backward; a multiplication and an addition are two."""

    per_token: float
    per_image: float

    def of(self, tokens: float, images: float) -> float:
        return tokens * self.per_token + images * self.per_image


def count_flops(config: RunConfig, precision: str, *, has_features: bool) -> ModelFlops:
    """FLOPs of a run's model, at its longest text with one image.

    Args:
        config: of the run.
        precision: fp32, bf16 or fp16.
        has_features: images come as features from a cache: the towers do not run.

    Raises:
        ConfigError: a tower cannot be planned.
    """
    tokens = config.data.max_text_tokens
    plan = compute_plan(build_planned(config, DTYPES[precision]), num_tokens=tokens)
    of_images = 0.0
    for media in plan.media:
        for name in (tower_part(media.kind), resampler_part(media.kind)):
            part = plan.part(name)
            if not (has_features and name == tower_part(media.kind)):
                of_images += tokens * (part.forward_flops + part.backward_flops)
    towers = {n for m in plan.media for n in (tower_part(m.kind), resampler_part(m.kind))}
    rest = [part for part in plan.parts if part.name not in towers]
    return ModelFlops(sum(p.forward_flops + p.backward_flops for p in rest), of_images)


def device_peak(setting: float | str, device: torch.device, precision: str) -> float | None:
    """Peak FLOPs a second of one device; None where none is known.

    Args:
        setting: `tracking.peak_tflops`: a number, ``auto`` (the maker's data sheet) or ``measured``.
        device: of the rank.
        precision: fp32, bf16 or fp16.
    """
    if isinstance(setting, float):
        return 1e12 * setting
    if setting == "measured":
        return measure_peak(device, DTYPES[precision])
    if device.type != "cuda":
        return None
    gpu = recognise_gpu(torch.cuda.get_device_name(device))
    tflops = gpu.tflops.get(precision) if gpu else None
    return None if tflops is None else 1e12 * tflops


def measure_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOPs a second of the best of some products of square matrices, on one device."""
    side = MEASURED_SIDE[device.type]
    one, two = (torch.rand(side, side, device=device, dtype=dtype) for _ in "ab")
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        (one @ two)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
