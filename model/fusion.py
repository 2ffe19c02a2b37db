"""How trained parts are let into a frozen language model: by hooks that act only while a context is set.

The pretrained modules, their names and their attributes stay as transformers made them, and outside of a
context the model is the plain one. Inside of one, everything that runs the model (a training step,
`generate` with a cache, beams) sees new tokens in embedding and head, and gated blocks before chosen layers.
Shape legend: B rows, T tokens of one call, M media slots, L latents, H language width, D latent width.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from model.media import media_mask
from model.tokens import NewTokens


@dataclass
class FusionContext:
    """What the hooks see during one forward or one generation.

    Attributes:
        latents: ``[B, M, L, D]``.
        slots: long ``[B, M]``, see `model.media.Media`.
        input_rows: rows of the new tokens for the embedding.
        output_rows: rows of the new text tokens for the head.
        real_tokens: flat indices of the tokens that are no padding, or None when all are.
        documents: long ``[B, T]``, see `model.media.media_mask`; None when a row is one document.
        hide_media: no token sees any medium.
        generating: the row is continued call by call; keys and values of the latents are kept.
        seen: long ``[B']``, media tokens in earlier calls. B' may be a multiple of B: beams.
        input_ids: of the present call, ``[B', T]``.
        visible: bool ``[B', T, M]`` of the present call.
        keys_values: of each block's latents, while generating.
    """

    latents: Tensor
    slots: Tensor
    input_rows: Tensor
    output_rows: Tensor
    real_tokens: Tensor | None = None
    documents: Tensor | None = None
    hide_media: bool = False
    generating: bool = False
    seen: Tensor | None = None
    input_ids: Tensor | None = None
    visible: Tensor | None = None
    keys_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Fusion:
    """Installs the hooks once; they act while a context is set.

    Args:
        language: a transformers causal language model.
        new_tokens: the tokens it does not know.
        blocks: one gated block per fused layer.
        layers: the decoder layers that the blocks stand before.
        attend: as in `model.media.media_mask`.
    """

    def __init__(
        self,
        language: nn.Module,
        *,
        new_tokens: NewTokens,
        blocks: nn.ModuleList,
        layers: list[nn.Module],
        attend: str = "latest",
    ) -> None:
        self.new_tokens = new_tokens
        self.blocks = blocks
        self.attend = attend
        self.checkpointing = False
        self.context: FusionContext | None = None
        embedding = language.get_input_embeddings()
        embedding.register_forward_pre_hook(HideNewTokens(self))
        embedding.register_forward_hook(EmbedNewTokens(self))
        language.get_output_embeddings().register_forward_hook(ExtendLogits(self))
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(RunBlock(self, index), with_kwargs=True)

    @contextmanager
    def using(self, context: FusionContext) -> Iterator[None]:
        """Set the context for the calls inside the block."""
        self.context = context
        try:
            yield
        finally:
            self.context = None


# The hooks are objects and not closures, so that copying a model copies them along.
@dataclass
class HideNewTokens:
    """Looks up token 0 for new tokens, whose ids the frozen embedding may not have."""

    fusion: Fusion

    def __call__(self, embedding: nn.Module, args: tuple) -> tuple | None:
        """Replace the ids, note them, and work out what each token sees."""
        context = self.fusion.context
        if context is None:
            return None
        ids = self.fusion.new_tokens.ids
        context.input_ids = input_ids = args[0]
        is_media = ids.is_media(input_ids)
        beams = len(input_ids) // len(context.slots)
        slots = context.slots if beams == 1 else context.slots.repeat_interleave(beams, dim=0)
        context.visible = media_mask(
            is_media,
            slots,
            attend=self.fusion.attend,
            seen_B=context.seen,
            documents_BT=context.documents,
        )
        if context.hide_media:
            context.visible = torch.zeros_like(context.visible)
        if context.generating:
            count = is_media.sum(1)
            context.seen = count if context.seen is None else context.seen + count
        new = is_media
        for token_id in ids.text:
            new = new | (input_ids == token_id)
        return (input_ids.masked_fill(new, 0), *args[1:])


@dataclass
class EmbedNewTokens:
    """Puts the rows of the new tokens where they stand."""

    fusion: Fusion

    def __call__(self, embedding: nn.Module, args: tuple, embedded: Tensor) -> Tensor | None:
        """Replace the output of the embedding."""
        context = self.fusion.context
        if context is None:
            return None
        return self.fusion.new_tokens.embed(embedded, context.input_ids, context.input_rows)


@dataclass
class ExtendLogits:
    """Gives the new tokens their columns in the logits."""

    fusion: Fusion

    def __call__(self, head: nn.Module, args: tuple, logits: Tensor) -> Tensor | None:
        """Replace the output of the head."""
        context = self.fusion.context
        if context is None:
            return None
        return self.fusion.new_tokens.extend_logits(logits, args[0], context.output_rows)


@dataclass
class RunBlock:
    """Runs one gated block on the hidden states that a decoder layer is about to get."""

    fusion: Fusion
    index: int

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Replace the layer's hidden states by those behind the gated block."""
        context = self.fusion.context
        if context is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = self._run(context, hidden)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden}

    def _run(self, context: FusionContext, hidden: Tensor) -> Tensor:
        block = self.fusion.blocks[self.index]
        if context.generating:
            if self.index not in context.keys_values:
                beams = len(hidden) // len(context.latents)
                keys_values = block.attention.keys_values(context.latents)
                context.keys_values[self.index] = tuple(
                    t.repeat_interleave(beams, dim=0) for t in keys_values
                )
            return block(hidden, context.keys_values[self.index], context.visible)
        inputs = (hidden, context.latents, context.visible, context.real_tokens)
        if self.fusion.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


@dataclass
class CheckpointedForward:
    """Takes the place of a layer's `forward`: activations are computed again in backward.

    transformers' own checkpointing acts in training mode only, and frozen layers stay in eval mode.
    """

    forward: Callable

    def __call__(self, *args, **kwargs):
        """Run the layer; without a gradient to compute, plainly."""
        tensors = [t for t in (*args, *kwargs.values()) if torch.is_tensor(t)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)
        return self.forward(*args, **kwargs)


class PassHidden(nn.Module):
    """Stands for the body of a language model: hands out the hidden states that it was given."""

    @property
    def decoder(self) -> "PassHidden":
        """OPT asks its body for the decoder."""
        return self

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object):
        """Return the inputs as the last hidden states."""
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


class Head:
    """Hidden states to logits, exactly as the language model itself does it.

    Families differ behind the head (soft caps, scales): a copy of the outer model that shares all
    modules but the body runs their code on hidden states of our choice, as many as we like at a time.

    Args:
        language: a transformers causal language model.

    Raises:
        ValueError: the model keeps no body apart from its head.
    """

    def __init__(self, language: nn.Module) -> None:
        name = language.base_model_prefix
        if name not in language._modules:
            raise ValueError(
                f"{type(language).__name__} has no module {name!r} apart from its head; "
                "give a transformers causal language model"
            )
        self.outer = copy.copy(language)
        self.outer._modules = {**language._modules, name: PassHidden()}

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits ``[B, T, V]`` of hidden states ``[B, T, H]``."""
        # Not a call: hooks on the outer model are for its real forward.
        return self.outer.forward(inputs_embeds=hidden, use_cache=False).logits
