"""What a model costs before it exists: parameters, FLOPs and activations of every part.

Runs a model on the meta device (`model.build.plan_flamingo`) forward and backward, so that what frozen
parts save is counted by autograd itself, and not by a formula that forgets a case.
Formulas and what they leave out: docs/model.md.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from model.flamingo import Flamingo
from model.media import Media, MediaInput
from model.meter import Label, Meter, PlanAttention, labelled

CROSS_ATTENTION = "cross-attention"
FEED_FORWARDS = "feed-forwards"
EXPERTS = "experts"
NEW_TOKENS = "new tokens"
LANGUAGE = "language model"
CONTRASTIVE = "contrastive head"


@dataclass
class PartPlan:
    """One part of the model.

    Attributes:
        name: as in the table.
        trainable: parameters.
        frozen: parameters.
        forward_flops: per text token; a multiplication and an addition are two.
        backward_flops: likewise.
        activation_bytes: kept for backward, per row, without activation checkpointing.
    """

    name: str
    trainable: int = 0
    frozen: int = 0
    forward_flops: float = 0.0
    backward_flops: float = 0.0
    activation_bytes: int = 0


@dataclass(frozen=True)
class BlockPlan:
    """One gated block: the decoder layer it stands before, and its feed-forward."""

    layer: int
    num_experts: int = 1
    top_k: int = 1
    shared_expert: bool = False


@dataclass(frozen=True)
class MediaPlan:
    """One kind of media: sizes of its tower and resampler."""

    kind: str
    tower: str
    input_shape: tuple[int, ...]
    num_patches: int
    width: int
    depth: int
    num_latents: int
    latent_width: int


@dataclass
class ModelPlan:
    """All figures of a model.

    Attributes:
        parts: in the order of the table.
        num_tokens: text tokens of a row that the figures are for.
        num_images: images of a row.
        media: kinds of media.
        blocks: gated blocks from the bottom up.
        language: class name, layers, width and vocabulary of the language model.
        layer_flops: (forward, backward) per text token of every decoder layer.
        layer_bytes: activations of a row that every decoder layer keeps.
        block_bytes: likewise of every gated block.
    """

    parts: list[PartPlan]
    num_tokens: int
    num_images: int
    media: list[MediaPlan]
    blocks: list[BlockPlan]
    language: dict[str, str | int]
    layer_flops: list[tuple[float, float]] = field(default_factory=list)
    layer_bytes: list[int] = field(default_factory=list)
    block_bytes: list[int] = field(default_factory=list)

    @property
    def total(self) -> PartPlan:
        """The sum over the parts."""
        total = PartPlan("total")
        for part in self.parts:
            for name in vars(part).keys() - {"name"}:
                setattr(total, name, getattr(total, name) + getattr(part, name))
        return total

    def part(self, name: str) -> PartPlan:
        """Return one part by its name.

        Raises:
            KeyError: the model has no such part.
        """
        return {part.name: part for part in self.parts}[name]


def tower_part(kind: str) -> str:
    """Name of a kind's tower in the table."""
    return f"{kind} tower"


def resampler_part(kind: str) -> str:
    """Name of a kind's resampler in the table."""
    return f"{kind} resampler"


def compute_plan(model: Flamingo, *, num_tokens: int = 256, num_images: int = 1) -> ModelPlan:
    """Count everything for one row, by one forward and backward.

    Args:
        model: on the meta device, in the dtype of the training run.
        num_tokens: text tokens of the row.
        num_images: media of the row, all of the first kind.

    Raises:
        ValueError: a count below 1, or more images than tokens.
    """
    if not 1 <= num_images <= num_tokens:
        raise ValueError(f"{num_images} images in a row of {num_tokens} tokens; give 1 or more")
    labels = _labels(model)
    storages = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    counter = FlopCounterMode(display=False)
    meter = Meter(counter, storages, Label(LANGUAGE))
    model.train()
    with ExitStack() as stack:
        stack.enter_context(labelled(labels, meter))
        stack.enter_context(PlanAttention())
        stack.enter_context(counter)
        stack.enter_context(saved_tensors_hooks(meter.keep, meter.take))
        output = model(**_row(model, num_tokens, num_images))
        terms = (
            *(output.loss_sum, output.load_balance_loss, output.z_loss),
            *(output.language_loss_sum, output.contrastive_loss),
        )
        loss = sum(term for term in terms if term is not None)
        meter.switch()
        loss.backward()
        meter.switch()
    model.zero_grad()
    parts = _parts(model)
    for name, part in parts.items():
        part.forward_flops = _sum(meter.forward_flops, name) / num_tokens
        part.backward_flops = _sum(meter.backward_flops, name) / num_tokens
        part.activation_bytes = _sum(meter.activation_bytes, name)
    config = model.language.config.get_text_config()
    layers = [Label(LANGUAGE, index) for index in range(config.num_hidden_layers)]
    return ModelPlan(
        parts=list(parts.values()),
        num_tokens=num_tokens,
        num_images=num_images,
        media=[_media_plan(kind, encoder) for kind, encoder in model.media_encoders.items()],
        blocks=_block_plans(model),
        language={
            "model": type(model.language).__name__,
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "vocabulary": config.vocab_size,
        },
        layer_flops=[
            (meter.forward_flops[label] / num_tokens, meter.backward_flops[label] / num_tokens)
            for label in layers
        ],
        layer_bytes=[meter.activation_bytes[label] for label in layers],
        block_bytes=[
            meter.activation_bytes[Label(CROSS_ATTENTION, index)]
            + meter.activation_bytes[Label(_feed_forward_part(block), index)]
            for index, block in enumerate(model.gated_blocks)
        ],
    )


def _row(model: Flamingo, num_tokens: int, num_images: int) -> dict[str, object]:
    kind, encoder = next(iter(model.media_encoders.items()))
    blank = partial(torch.zeros, device="meta")
    ids = blank(1, num_tokens, dtype=torch.long)
    pixels = blank(num_images, 1, *encoder.tower.input_shape)
    return {
        "media": Media(blank(1, num_images, dtype=torch.long), {kind: MediaInput(pixels)}),
        "input_ids": ids,
        "attention_mask": ids == 0,
        "labels": ids,
    }


def _labels(model: Flamingo) -> dict[nn.Module, Label]:
    """The modules whose forward belongs to a part; inner ones win over outer ones."""
    labels = {
        model.new_tokens: Label(NEW_TOKENS),
        model.language.base_model: Label(LANGUAGE),
        model.language.get_output_embeddings(): Label(LANGUAGE),
    }
    for kind, encoder in model.media_encoders.items():
        labels[encoder.tower] = Label(tower_part(kind))
        labels[encoder.resampler] = Label(resampler_part(kind))
    for index, layer in enumerate(model.decoder_layers):
        labels[layer] = Label(LANGUAGE, index)
    for index, block in enumerate(model.gated_blocks):
        labels[block] = Label(CROSS_ATTENTION, index)
        label = Label(_feed_forward_part(block), index)
        labels[block.feed_forward_norm] = labels[block.feed_forward] = label
    if model.contrastive is not None:
        labels[model.contrastive] = Label(CONTRASTIVE)
    return labels


def _parts(model: Flamingo) -> dict[str, PartPlan]:
    """All parts with their parameters, in the order of the table; a shared one counts once."""
    owners: dict[str, list[nn.Module | nn.Parameter]] = {}
    for kind, encoder in model.media_encoders.items():
        owners[tower_part(kind)] = [encoder.tower]
        owners[resampler_part(kind)] = [encoder.resampler]
    owners[CROSS_ATTENTION] = []
    for block in model.gated_blocks:
        owners[CROSS_ATTENTION] += [block.attention, block.attn_gate]
        feed_forward = owners.setdefault(_feed_forward_part(block), [])
        feed_forward += [block.feed_forward_norm, block.feed_forward, block.ff_gate]
    owners[NEW_TOKENS] = [model.new_tokens]
    owners[LANGUAGE] = [model.language]
    if model.contrastive is not None:
        owners[CONTRASTIVE] = [model.contrastive]
    parts, seen = {}, set()
    for name, modules in owners.items():
        part = parts[name] = PartPlan(name)
        for owner in modules:
            for parameter in owner.parameters() if isinstance(owner, nn.Module) else [owner]:
                if parameter in seen:
                    continue
                seen.add(parameter)
                if parameter.requires_grad:
                    part.trainable += parameter.numel()
                else:
                    part.frozen += parameter.numel()
    return parts


def _feed_forward_part(block: nn.Module) -> str:
    return EXPERTS if hasattr(block.feed_forward, "routed") else FEED_FORWARDS


def _block_plans(model: Flamingo) -> list[BlockPlan]:
    plans = []
    for layer, block in zip(model.fused_layers, model.gated_blocks, strict=True):
        routed = getattr(block.feed_forward, "routed", None)
        if routed is None:
            plans.append(BlockPlan(layer))
        else:
            shared = block.feed_forward.shared is not None
            plans.append(BlockPlan(layer, routed.num_experts, routed.top_k, shared))
    return plans


def _media_plan(kind: str, encoder: nn.Module) -> MediaPlan:
    tower, resampler = encoder.tower, encoder.resampler
    num_latents, latent_width = resampler.latents.shape
    name = type(getattr(tower, "backbone", tower)).__name__
    sizes = (tuple(tower.input_shape), tower.num_patches, tower.width, len(resampler.layers))
    return MediaPlan(kind, name, *sizes, num_latents, latent_width)


def _sum(figures: dict[Label, int], part: str) -> int:
    return sum(value for label, value in figures.items() if label.part == part)
