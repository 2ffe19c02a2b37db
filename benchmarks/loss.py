"""The loss alone over a frozen head with a large vocabulary: in chunks, with all logits, and torch's own.

Part of `benchmarks.model`. Memory is the peak of a process of its own above head and hidden states; the
gradient of the hidden states is in it.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.figures import Figure, paired, seconds
from benchmarks.memory import compare_memory, peak_memory
from model.loss import LOGITS_PER_CHUNK, chunked_cross_entropy

VOCABULARY, WIDTH = 131072, 256
CHUNK = LOGITS_PER_CHUNK // VOCABULARY
CHUNKED, FULL, TORCH = "in chunks", "all logits", "torch linear_cross_entropy"


def build_loss(device: str, kind: str, num_tokens: int, chunk: int = CHUNK) -> Callable[[], Tensor]:
    """Make the inputs; return forward and backward.

    Args:
        device: cpu or cuda.
        kind: `CHUNKED`, `FULL`, or `TORCH`, which is torch's own loss in chunks.
        num_tokens: target tokens.
        chunk: target tokens of a chunk, for the kinds that have chunks.
    """
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    head = torch.randn(VOCABULARY, WIDTH, device=device, dtype=dtype) * 0.02
    hidden = torch.randn(num_tokens, WIDTH, device=device, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (num_tokens,), device=device)
    rows = hidden.new_zeros(0, WIDTH)

    def compute() -> Tensor:
        if kind == CHUNKED:
            loss, _ = chunked_cross_entropy(
                hidden,
                rows,
                targets,
                lambda part, _: functional.linear(part, head),
                vocabulary=VOCABULARY,
                logits_per_chunk=chunk * VOCABULARY,
            )
            return loss
        if kind == FULL:
            logits = functional.linear(hidden, head).float()
            return functional.cross_entropy(logits, targets, reduction="sum")
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
        return functional.linear_cross_entropy(
            hidden, head, targets, reduction="sum", options=options
        )

    def call() -> Tensor:
        hidden.grad = None
        loss = compute()
        loss.backward()
        return loss.detach()

    return call


def measure_loss(device: str, kind: str, num_tokens: int, chunk: int = CHUNK) -> float:
    """Peak MiB of forward and backward."""
    build_loss(device, kind, 8, chunk)()  # what libraries keep for themselves
    return peak_memory(build_loss(device, kind, num_tokens, chunk), device)


def compare_losses(args: argparse.Namespace) -> list[Figure]:
    """Whether the memory grows with the batch or with the chunk, and what that costs in time."""
    few, many = (256, 768) if args.quick else (512, 4096)
    figures = []
    for name, ours, peer, goal in (
        (f"{CHUNKED} / {FULL}, {many} tokens", (CHUNKED, many), (FULL, many), 1.0),
        (f"{CHUNKED}, {many} / {few} tokens", (CHUNKED, many), (CHUNKED, few), 1.25),
        (f"{FULL}, {many} / {few} tokens", (FULL, many), (FULL, few), None),
        (
            f"in chunks of {CHUNK} / {CHUNK // 4} tokens",
            (CHUNKED, many),
            (CHUNKED, many, CHUNK // 4),
            None,
        ),
    ):
        works = (args.device, *ours), (args.device, *peer)
        memory = compare_memory(measure_loss, *works, repeats=1 if args.quick else 2)
        figures.append(memory.figure(f"peak memory of the loss, {name}", "MiB", goal))
    ours = build_loss(args.device, CHUNKED, few)
    for kind in (FULL, TORCH):
        peer = build_loss(args.device, kind, few)
        torch.testing.assert_close(ours(), peer(), rtol=1e-4, atol=0)
        times = paired(
            lambda: seconds(ours, args),
            lambda peer=peer: seconds(peer, args),
            pairs=5 if args.quick else 9,
        )
        figures.append(times.figure(f"time of the loss, {CHUNKED} / {kind}, {few} tokens", "s"))
    return figures
