"""One training step of a Flamingo against the same blocks run in open_flamingo's manner, and the loss alone
(`benchmarks.loss`).

    python -m benchmarks.model [--quick] [--device cpu|cuda] [--json PATH] [--markdown PATH]

Forward and backward of interleaved documents with 1 to 4 images and 30 to 100 % of the row's tokens; same
weights, same documents, equal losses (checked). In open_flamingo's manner: every row is given as many images
as the fullest and blank ones are encoded too, logits are computed for every token, and the frozen language
model keeps `requires_grad` and is only left out of the optimizer (what it does under FSDP). Each of the
three is also turned on alone. Memory is the peak of a process of its own above weights and documents; the
gradients that the step leaves are in it.
"""

import argparse
import logging
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from benchmarks.figures import Figure, paired, parser, seconds, write
from benchmarks.loss import compare_losses
from benchmarks.memory import compare_memory, peak_memory
from model.build import assemble
from model.config import ModelConfig
from model.flamingo import Flamingo
from model.media import Media, MediaInput
from model.tokens import TokenIds
from model.vision_encoder import VisionEncoder

MANNERS = ("padded images", "full logits", "frozen weights differentiated")
VOCABULARY, SLOTS = 49152, 4


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
    rows, length = (4, 48) if quick else (6, 160)
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
    change = nullcontext()
    if "full logits" in manners:
        change = patch.object(model, "_loss", partial(full_logits_loss, model))
    with change:
        output = model(**batch)
    loss = output.loss_sum / output.num_tokens
    loss.backward()
    return loss.detach()


def full_logits_loss(model: Flamingo, hidden: Tensor, targets: Tensor, context: object) -> Tensor:
    """Summed cross entropy over the logits of all tokens, padding included."""
    logits = model._head(hidden)[:, :-1].flatten(0, 1).float()
    return functional.cross_entropy(logits, targets[:, 1:].flatten(), reduction="sum")


def measure_step(quick: bool, manners: tuple[str, ...], device: str) -> float:
    """Peak MiB of a step above weights and documents; the trained weights' gradients are in it."""
    model, batch = build(quick, device), documents(quick, device)
    return peak_memory(lambda: step(model, batch, manners), device)


def compare_steps(args: argparse.Namespace) -> list[Figure]:
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
            lambda: seconds(lambda: step(model, batch, ()), args),
            lambda m=manners: seconds(lambda: step(model, batch, m), args),
            5,
        )
        # 1.5 times the tokens a second; each gain alone is there to be known.
        goal = 1 / 1.5 if manners == MANNERS else None
        figures.append(times.figure(f"time of a step, ours / {name}", "s", goal))
        if args.quick and manners != MANNERS:
            continue
        works = (args.quick, (), args.device), (args.quick, manners, args.device)
        memory = compare_memory(measure_step, *works, repeats=1 if args.quick else 2)
        goal = 1.0 if manners == MANNERS else None
        figures.append(memory.figure(f"peak memory of a step, ours / {name}", "MiB", goal))
    return figures


def main() -> None:
    """Measure everything and write it."""
    args = parser("one training step of a Flamingo, and the loss alone").parse_args()
    logging.disable(logging.WARNING)
    write([*compare_steps(args), *compare_losses(args)], args)


if __name__ == "__main__":
    main()
