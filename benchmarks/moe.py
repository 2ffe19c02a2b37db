"""Mixture of experts against a dense feed-forward and against DeepSpeed's own MoE.

    python -m benchmarks.moe [--quick] [--device cpu|cuda] [--clock wall|cpu] [--json PATH]
        [--markdown PATH]

Forward and backward of one layer with 8 SwiGLU experts, top-2. The dense peer has twice the hidden
width of one expert: as many multiplications per token. The skewed router draws experts by Zipf's law
(exponent 1), so that the first gets 59 % of the tokens. Memory is the peak above what model and
tokens take: on a CPU the resident memory of a process of its own, on a GPU torch's allocator.
"""

import argparse
import logging
import statistics

import torch
from torch import Tensor, nn

from benchmarks.figures import Figure, Pairs, paired, parser, seconds, write
from benchmarks.memory import compare_memory, peak_memory
from model.experts import NativeExperts, RoutedExperts
from model.feed_forward import DenseFeedForward

WIDTH, HIDDEN, NUM_EXPERTS, TOP_K = 512, 1024, 8, 2
ROUTERS = ("even", "zipf")


def build(kind: str, device: str) -> nn.Module:
    """Build ``ours``, ``native`` or ``dense``; the router reads its logits from the token.

    With the same weights in ours and native, so that their outputs can be compared.
    """
    torch.manual_seed(0)
    if kind == "dense":
        return DenseFeedForward(WIDTH, TOP_K * HIDDEN).to(device, _dtype(device))
    ours = RoutedExperts(WIDTH, HIDDEN, num_experts=NUM_EXPERTS, top_k=TOP_K)
    nn.init.eye_(ours.gate.weight)
    if kind == "native":
        native = NativeExperts(WIDTH, HIDDEN, num_experts=NUM_EXPERTS, top_k=TOP_K)
        inner = native.moe.deepspeed_moe
        inner.gate.wg.weight.data = ours.gate.weight.data
        for index, expert in enumerate(inner.experts.deepspeed_experts):
            expert.gate_up_proj.weight.data = ours.experts.gate_up_proj.data[index].clone()
            expert.down_proj.weight.data = ours.experts.down_proj.data[index].clone()
        ours = native
    return ours.to(device, _dtype(device))


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def draw_tokens(num_tokens: int, router: str, device: str) -> Tensor:
    """Draw tokens ``[X, H]`` whose first values are logits that give the wanted distribution.

    The K largest of log p plus Gumbel noise are K draws from p without replacement.
    """
    torch.manual_seed(1)
    tokens = torch.randn(num_tokens, WIDTH)
    ranks = torch.arange(1, NUM_EXPERTS + 1).float()
    log_p = torch.zeros(NUM_EXPERTS) if router == "even" else -ranks.log()
    uniform = torch.rand(num_tokens, NUM_EXPERTS).clamp(min=1e-9)
    tokens[:, :NUM_EXPERTS] = log_p - (-uniform.log()).log()
    return tokens.to(device, _dtype(device)).requires_grad_()


def step(module: nn.Module, tokens: Tensor) -> None:
    """Run forward and backward."""
    for tensor in (tokens, *module.parameters()):
        tensor.grad = None
    output = module(tokens)
    output.backward(torch.ones_like(output))


def compare_times(kinds: tuple[str, str], tokens: Tensor, args: argparse.Namespace) -> Pairs:
    """Time two kinds on the same tokens, in turn; few tokens take little time, so more often."""
    ours, peer = (build(kind, args.device) for kind in kinds)
    few, many = (9, 5) if args.quick else (25, 7)
    return paired(
        lambda: seconds(lambda: step(ours, tokens), args),
        lambda: seconds(lambda: step(peer, tokens), args),
        pairs=few if len(tokens) <= 2048 else many,
    )


def check_equal(device: str) -> None:
    """Refuse to compare what does not compute the same."""
    tokens = draw_tokens(256, "zipf", device)
    ours, native = (build(kind, device)(tokens) for kind in ("ours", "native"))
    tolerance = 1e-5 if device == "cpu" else 2e-2
    torch.testing.assert_close(ours, native, atol=tolerance, rtol=tolerance)


def measure_memory(kind: str, num_tokens: int, router: str, device: str) -> float:
    """Peak MiB of one step above model and tokens."""
    module, tokens = build(kind, device), draw_tokens(num_tokens, router, device)
    step(module, tokens[:8].detach().requires_grad_())  # what libraries keep for themselves
    for parameter in module.parameters():
        parameter.grad = None
    return peak_memory(lambda: step(module, tokens), device)


def main() -> None:
    """Measure everything and write it."""
    args = parser("mixture of experts: time and memory of one layer, forward and backward")
    args = args.parse_args()
    logging.disable(logging.WARNING)
    device = args.device
    check_equal(device)
    figures: list[Figure] = []
    per_token: dict[int, list[float]] = {}
    for num_tokens in (1024, 4096) if args.quick else (1024, 2048, 4096, 8192, 16384, 32768):
        tokens = draw_tokens(num_tokens, "even", device)
        times = compare_times(("ours", "dense"), tokens, args)
        per_token[num_tokens] = [1e6 * time / num_tokens for time in times.ours]
        figures.append(times.figure(f"time, ours / dense, {num_tokens} tokens", "s", 1.25))
    few, many = min(per_token), max(per_token)
    growth = Pairs([statistics.median(per_token[many])], [statistics.median(per_token[few])])
    figures.append(growth.figure(f"time per token, {many} / {few} tokens", "us", 1.25))
    for num_tokens in (4096,) if args.quick else (1024, 8192, 32768):
        for router, goal in zip(ROUTERS, (1.0, 1 / 1.5), strict=True):
            tokens = draw_tokens(num_tokens, router, device)
            times = compare_times(("ours", "native"), tokens, args)
            name = f"time, ours / deepspeed MoE, {router}, {num_tokens} tokens"
            figures.append(times.figure(name, "s", goal))
    num_tokens, repeats = (4096, 1) if args.quick else (16384, 3)
    for peer, router, goal in (
        ("native", "even", 1.0),
        ("native", "zipf", 1.0),
        ("dense", "even", None),
    ):
        work = num_tokens, router, device
        memory = compare_memory(measure_memory, ("ours", *work), (peer, *work), repeats)
        peer = "deepspeed MoE" if peer == "native" else peer
        name = f"peak memory, ours / {peer}, {router}, {num_tokens} tokens"
        figures.append(memory.figure(name, "MiB", goal))
    write(figures, args)


if __name__ == "__main__":
    main()
