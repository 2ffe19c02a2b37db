"""One training step of a Flamingo against the same blocks run in open_flamingo's manner, and the loss alone.

    python -m benchmarks.model [--quick] [--device cpu|cuda] [--json PATH] [--markdown PATH]

Forward and backward of interleaved documents with 1 to 4 images and 30 to 100 % of the row's tokens; same
weights, same documents, equal losses (checked). In open_flamingo's manner: every row is given as many images
as the fullest and blank ones are encoded too, logits are computed for every token, and the frozen language
model keeps `requires_grad` and is only left out of the optimizer (what it does under FSDP). Each of the
three is also turned on alone. Memory is the peak of a process of its own above what it held before the step.
"""

import argparse
import logging
import multiprocessing
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from benchmarks.figures import Figure, Pairs, paired, parser, seconds, write
from model.build import assemble
from model.config import ModelConfig
from model.flamingo import Flamingo
from model.loss import chunked_cross_entropy
from model.media import Media, MediaInput
from model.tokens import TokenIds
from model.vision import VisionEncoder

MANNERS = ("padded images", "full logits", "frozen weights differentiated")
VOCABULARY, SLOTS = 49152, 4
LOSS_VOCABULARY, LOSS_WIDTH = 131072, 256


def build(quick: bool, device: str) -> Flamingo:
    """A language model of SmolLM2's width and vocabulary, a small ViT, four gated blocks."""
    torch.manual_seed(0)
    layers = 4 if quick else 8
    language = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    vision = ViTConfig(
        image_size=112,
        patch_size=16,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
    )
    half = (0.5, 0.5, 0.5)
    encoder = VisionEncoder(
        ViTModel(vision, add_pooling_layer=False),
        image_size=112,
        mean=half,
        std=half,
        patch_size=16,
    )
    config = ModelConfig(
        vision={"path": "-"},
        language={"path": "-"},
        resampler={"depth": 2, "num_latents": 32, "num_heads": 6, "head_dim": 64},
        cross_attention={"every": layers // 4, "num_heads": 8, "head_dim": 64, "gate_init": 0.5},
    )
    ids = TokenIds({"image": VOCABULARY + 1}, (VOCABULARY,))
    model = assemble(encoder, LlamaForCausalLM(language), config, token_ids=ids, seed=0)
    return model.to(device, torch.bfloat16 if device == "cuda" else torch.float32).train()


def documents(quick: bool, device: str) -> dict:
    """Interleaved documents, padded to the longest."""
    torch.manual_seed(1)
    rows, length = (4, 96) if quick else (8, 192)
    input_ids = torch.randint(3, VOCABULARY, (rows, length))
    attention_mask = torch.zeros(rows, length, dtype=torch.bool)
    slots = torch.full((rows, SLOTS), -1)
    images = 0
    for row in range(rows):
        count, used = 1 + row % SLOTS, round(length * (0.3 + 0.7 * row / (rows - 1)))
        attention_mask[row, :used] = True
        for slot in range(count):
            input_ids[row, slot * used // count] = VOCABULARY + 1
            slots[row, slot] = images
            images += 1
    labels = input_ids.masked_fill(~attention_mask | (input_ids == VOCABULARY + 1), -100)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    pixels = torch.randn(images, 1, 3, 112, 112)
    media = Media(slots, {"image": MediaInput(pixels)}).to(torch.device(device), dtype)
    tensors = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {"media": media} | {name: t.to(device) for name, t in tensors.items()}


def pad_images(media: Media) -> Media:
    """Give every slot an image of its own, a blank one where there is none; masks stay as they are."""
    pixels, slots = media.inputs["image"].data, media.slots
    padded = pixels.new_zeros(slots.numel(), *pixels.shape[1:])
    here = slots.flatten() >= 0
    padded[here] = pixels[slots.flatten()[here]]
    numbers = torch.arange(slots.numel(), device=slots.device).view_as(slots)
    return Media(numbers.masked_fill(slots < 0, -1), {"image": MediaInput(padded)})


def step(model: Flamingo, batch: dict, manners: tuple[str, ...]) -> Tensor:
    """Forward and backward; return the loss per target token."""
    for parameter in model.parameters():
        parameter.grad = None
    model.language.requires_grad_("frozen weights differentiated" in manners)
    if "padded images" in manners:
        batch = batch | {"media": pad_images(batch["media"])}
    if "full logits" in manners:
        loss = full_logits_loss(model, batch)
    else:
        output = model(**batch)
        loss = output.loss_sum / output.num_tokens
    loss.backward()
    return loss.detach()


def full_logits_loss(model: Flamingo, batch: dict) -> Tensor:
    """Cross entropy over the logits of all tokens, padding included."""
    context = model._context(model.encode_media(batch["media"]), batch["media"].slots, None)
    with model._fusion.using(context):
        logits = model._head(model._body(batch["input_ids"], batch["attention_mask"]))
    shifted = logits[:, :-1].flatten(0, 1).float()
    return functional.cross_entropy(shifted, batch["labels"][:, 1:].flatten(), ignore_index=-100)


def loss_step(kind: str, num_tokens: int, device: str) -> None:
    """The loss alone, forward and backward, over a frozen head."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    head = torch.randn(LOSS_VOCABULARY, LOSS_WIDTH, device=device, dtype=dtype) * 0.02
    hidden = torch.randn(num_tokens, LOSS_WIDTH, device=device, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, LOSS_VOCABULARY, (num_tokens,), device=device)
    if kind == "chunked":
        rows = hidden.new_zeros(0, LOSS_WIDTH)
        loss = chunked_cross_entropy(
            hidden,
            rows,
            targets,
            lambda h, _: functional.linear(h, head),
            vocabulary=LOSS_VOCABULARY,
        )
    elif kind == "full":
        loss = functional.cross_entropy(
            functional.linear(hidden, head).float(), targets, reduction="sum"
        )
    else:
        options = nn.LinearCrossEntropyOptions()
        loss = functional.linear_cross_entropy(
            hidden, head, targets, reduction="sum", options=options
        )
    loss.backward()


def peak_memory(kind: str, work: tuple, device: str) -> float:
    """Peak MiB of ``step`` or ``loss`` above what was held before it."""
    logging.disable(logging.WARNING)
    if kind == "step":
        quick, manners = work
        model, batch = build(quick, device), documents(quick, device)

        def call() -> None:
            step(model, batch, manners)
    else:
        loss_step(work[0], 8, device)

        def call() -> None:
            loss_step(*work, device)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts from here
    held = _status("VmRSS")
    call()
    return (_status("VmHWM") - held) / 2**10


def _status(name: str) -> int:
    """A field of the process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def compare_memory(kind: str, ours: tuple, peer: tuple, device: str, repeats: int) -> Pairs:
    """Measure each time in a new process."""
    context = multiprocessing.get_context("spawn")
    measured: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for work, results in zip((ours, peer), measured, strict=True):
            with context.Pool(1) as pool:
                results.append(pool.apply(peak_memory, (kind, work, device)))
    return Pairs(*measured)


def time_steps(args: argparse.Namespace, pairs: int) -> list[Figure]:
    """A step in our manner against a step in theirs, and against each of theirs alone."""
    model, batch = build(args.quick, args.device), documents(args.quick, args.device)
    reference = step(model, batch, ())
    figures = []
    for name, manners in {
        "open_flamingo's manner": MANNERS,
        **{f"{manner} alone": (manner,) for manner in MANNERS},
    }.items():
        torch.testing.assert_close(step(model, batch, manners), reference, rtol=1e-4, atol=0)
        times = paired(
            lambda: seconds(lambda: step(model, batch, ()), args.device),
            lambda m=manners: seconds(lambda: step(model, batch, m), args.device),
            pairs,
        )
        goal = 1 / 1.5 if manners == MANNERS else None
        figures.append(times.figure(f"time of a step, ours / {name}", "s", goal))
    return figures


def main() -> None:
    """Measure everything and write it."""
    args = parser("one training step of a Flamingo, and the loss alone").parse_args()
    logging.disable(logging.WARNING)
    figures = time_steps(args, 3 if args.quick else 5)
    repeats = 1 if args.quick else 2
    memory = compare_memory("step", (args.quick, ()), (args.quick, MANNERS), args.device, repeats)
    figures.append(
        memory.figure("peak memory of a step, ours / open_flamingo's manner", "MiB", 1.0)
    )
    many, few = (2048, 512) if args.quick else (4096, 512)
    works = ("chunked", many), ("full", many)
    memory = compare_memory("loss", *works, args.device, repeats)
    name = f"peak memory of the loss, chunked / full, {many} tokens, vocabulary 128k"
    figures.append(memory.figure(name, "MiB", 1.0))
    growth = compare_memory("loss", ("chunked", many), ("chunked", few), args.device, repeats)
    name = f"peak memory of the loss, chunked, {many} / {few} tokens"
    figures.append(growth.figure(name, "MiB", 1.25))
    for kind in ("full",) if args.quick else ("full", "torch linear_cross_entropy"):
        times = paired(
            lambda: seconds(lambda: loss_step("chunked", few, args.device), args.device),
            lambda k=kind: seconds(lambda: loss_step(k, few, args.device), args.device),
            5,
        )
        figures.append(times.figure(f"time of the loss, chunked / {kind}, {few} tokens", "s"))
    write(figures, args)


if __name__ == "__main__":
    main()
