"""How fast a model captions: latency, throughput and memory by batch size and precision."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import torch

from pipeline.evaluation.asker import Asker
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.layouts.record import Records
from pipeline.evaluation.outcome import Outcome
from pipeline.evaluation.results import Figure
from pipeline.prompts import encode_prompts

WARM_UP, LEAST_ROUNDS, SECONDS = 1, 5, 3.0
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def measure_speed(
    asker: Asker, records: Records, config: EvaluationConfig
) -> Callable[[], Outcome]:
    """Measure on the main rank, while the others wait; the model is left in the precision it had."""
    outcome = Outcome()
    if asker.info.is_main:
        device = asker.info.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
        outcome.notes.append(
            f"on {name}, torch with {torch.get_num_threads()} threads; {config.max_new_tokens} tokens are "
            "generated after each image, whatever they are; reading and decoding of images counts"
        )
        for precision in precisions(device):
            with converted(asker, PRECISIONS[precision]):
                for size in config.speed_batches:
                    condition = f"{precision}_batch_{size}"
                    for figure in _figures(asker, records, size, config.max_new_tokens, condition):
                        outcome.figures.append(figure)
    asker.info.barrier()
    return lambda: outcome


def precisions(device: torch.device) -> list[str]:
    """What the device computes in: on a CPU fp16 products are emulated, and left out."""
    if device.type == "cpu":
        return ["fp32", "bf16"]
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return ["fp32", "fp16", *(["bf16"] if bf16 else [])]


@contextmanager
def converted(asker: Asker, dtype: torch.dtype) -> Iterator[None]:
    """The model in another precision; afterwards its weights are what they were, to the bit."""
    before = asker.dtype
    # Kept in the host's memory: a second model on the GPU would count as memory of the first.
    tensors = dict(asker.model.named_parameters()) | dict(asker.model.named_buffers())
    kept = {n: (t.detach().to("cpu", copy=True), t.device) for n, t in tensors.items()}
    asker.model.to(dtype)
    asker.dtype = dtype
    try:
        yield
    finally:
        tensors = dict(asker.model.named_parameters()) | dict(asker.model.named_buffers())
        for name, (value, device) in kept.items():
            tensors[name].data = value.to(device)
        asker.dtype = before


def _figures(
    asker: Asker, records: Records, size: int, new_tokens: int, condition: str
) -> Iterator[Figure]:
    device = asker.info.device
    asks = [[records.items[n % len(records)].image.open()] for n in range(size)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    whole, first = [], []
    began = time.perf_counter()
    while len(whole) < WARM_UP + LEAST_ROUNDS or time.perf_counter() - began < SECONDS:
        first.append(_timed(asker, asks, 1))
        whole.append(_timed(asker, asks, new_tokens))
    whole, first = np.array(whole[WARM_UP:]), np.array(first[WARM_UP:])
    rounds, prompt_tokens = len(whole), sum(asker.length(ask) for ask in asks)
    figures = {
        "latency_p50": (1000 * np.quantile(whole, 0.5), "ms", "lower"),
        "latency_p95": (1000 * np.quantile(whole, 0.95), "ms", "lower"),
        "first_token_p50": (1000 * np.quantile(first, 0.5), "ms", "lower"),
        "prefill_tokens_per_second": (prompt_tokens / np.median(first), "1/s", "higher"),
        "queries_per_second": (size / np.median(whole), "1/s", "higher"),
        "tokens_per_second": (size * new_tokens / np.median(whole), "1/s", "higher"),
        "memory": (_memory(device), "GB", "lower"),
    }
    if new_tokens > 1:
        decode = size * (new_tokens - 1) / max(1e-9, np.median(whole) - np.median(first))
        figures["decode_tokens_per_second"] = (decode, "1/s", "higher")
    for name, (value, unit, better) in figures.items():
        yield Figure(
            name=name,
            condition=condition,
            value=float(value),
            unit=unit,
            better=better,
            samples=rounds,
        )


def _timed(asker: Asker, asks: list[list[bytes]], new_tokens: int) -> float:
    """Seconds from encoded images to the last token."""
    began = time.perf_counter()
    prompts = encode_prompts(asker.text, asker.image, asks)
    asker.model.generate(
        *prompts.to(asker.info.device, asker.dtype),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=asker.text.pad_id,
    )
    if asker.info.device.type == "cuda":
        torch.cuda.synchronize(asker.info.device)
    return time.perf_counter() - began


def _memory(device: torch.device) -> float:
    """GB: the most that tensors took on a GPU, or what the process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return "a CPU"
