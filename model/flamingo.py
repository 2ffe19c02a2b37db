"""The whole model: media encoders, and gated blocks inside a frozen language model.

Shape legend: B rows, M media slots, T text tokens, L latents, D latent width, H language width,
V logits (frozen vocabulary and new tokens), X target tokens.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.body import Body
from model.continuations import Continuations
from model.contrastive_loss import ContrastiveHead
from model.documents import find_pairs
from model.fusion import CheckpointedForward, Fusion, FusionContext, Head
from model.media import Media, MediaEncoder, place_latents
from model.next_token_loss import NextTokenLoss
from model.router import find_router
from model.router_watch import RouterWatch
from model.tokens import NewTokens


@dataclass
class FlamingoOutput:
    """What one forward gives; sums are to be divided by a global token count.

    Attributes:
        loss_sum: summed cross entropy of the text given the media, fp32 scalar.
        num_tokens: target tokens in the sum, long scalar.
        language_loss_sum: the same with all media hidden; None unless asked for.
        contrastive_loss: see `model.contrastive_loss`; None without a contrastive head.
        contrastive_accuracy: share of pairs that are nearest to each other; likewise.
        load_balance_loss: mean over the expert blocks, fp32 scalar, 0 without experts; its mean
            over ranks is that of the joined batch.
        z_loss: likewise.
        token_losses: ``[B, T - 1]``, what the token at t + 1 adds to the sum, 0 where it is no
            target; without a gradient.
        logits: ``[B, T, V]``; None unless asked for.
    """

    loss_sum: Tensor
    num_tokens: Tensor
    token_losses: Tensor
    load_balance_loss: Tensor
    z_loss: Tensor
    language_loss_sum: Tensor | None = None
    contrastive_loss: Tensor | None = None
    contrastive_accuracy: Tensor | None = None
    logits: Tensor | None = None


class Flamingo(nn.Module):
    """A vision-language model of frozen towers and the trained parts between them.

    Args:
        media_encoders: kind of media to its encoder, in the order in which `Media` counts them.
        language: frozen transformers causal language model.
        new_tokens: tokens that the language model does not know.
        gated_blocks: one block per fused layer.
        decoder_layers: all decoder layers of the language model.
        layers: 0-based decoder layer that each block stands before.
        attend: ``latest`` or ``all_previous``, see `model.media.media_mask`.
        top_k: experts per token, for the router losses.
        jitter: noise on the routers' inputs in training.
        language_loss: also compute the loss of the text with all media hidden.
        contrastive: head that compares latents and texts over the batch, or None.

    Attributes:
        routers: of the gated blocks, and what they put out.

    Raises:
        ValueError: the language model keeps no body apart from its head.

    Source: Flamingo (arXiv:2204.14198); open_flamingo, except that new tokens are parameters of
        their own instead of rows of an otherwise frozen embedding.
    """

    def __init__(
        self,
        media_encoders: dict[str, MediaEncoder],
        language: nn.Module,
        *,
        new_tokens: NewTokens,
        gated_blocks: nn.ModuleList,
        decoder_layers: nn.ModuleList,
        layers: list[int],
        attend: str = "latest",
        top_k: int = 1,
        jitter: float = 0.0,
        language_loss: bool = False,
        contrastive: ContrastiveHead | None = None,
    ) -> None:
        super().__init__()
        self.media_encoders = nn.ModuleDict(media_encoders)
        self.language = language.requires_grad_(False).eval()
        self.gated_blocks = gated_blocks
        self.new_tokens = new_tokens
        self.contrastive = contrastive
        self.token_ids = new_tokens.ids
        self.language_loss = language_loss
        self.fused_layers = tuple(layers)
        self.decoder_layers = tuple(decoder_layers)  # a tuple: they are parts of language already
        # Nothing is kept for backward below the first gated block.
        self._checkpointable = tuple(decoder_layers)[layers[0] :]
        self._fusion = Fusion(
            language,
            new_tokens=new_tokens,
            blocks=gated_blocks,
            layers=[decoder_layers[index] for index in layers],
            attend=attend,
        )
        self._head = Head(language)
        self._body = Body(language, self._fusion)
        self._loss = NextTokenLoss(self._head, language)
        self.routers = RouterWatch(gated_blocks, top_k, jitter)

    def train(self, mode: bool = True) -> "Flamingo":
        """Train the parts between the towers; the frozen towers stay in eval mode."""
        super().train(mode)
        self.language.eval()
        return self

    @property
    def vision(self) -> nn.Module:
        """The image tower."""
        return self.media_encoders["image"].tower

    @property
    def max_positions(self) -> int | None:
        """Tokens that the language model has positions for; None where it says nothing."""
        config = self.language.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    @property
    def expert_modules(self) -> dict[str, nn.Module]:
        """Name to module of every mixture of experts, as DeepSpeed AutoEP finds them."""
        return {
            f"gated_blocks.{index}.feed_forward.routed": block.feed_forward.routed
            for index, block in enumerate(self.gated_blocks)
            if find_router(block.feed_forward) is not None
        }

    def checkpoint_activations(self) -> None:
        """From now on keep only the inputs of blocks and layers, and compute the rest again.

        Calling it twice changes nothing.
        """
        self._fusion.checkpointing = True
        for layer in self._checkpointable:
            if not isinstance(layer.forward, CheckpointedForward):
                layer.forward = CheckpointedForward(layer.forward)

    def encode_media(self, media: Media) -> Tensor:
        """Encode media to latents of their slots, ``[B, M, L, D]``."""
        there, blank = [], []
        for kind, encoder in self.media_encoders.items():
            latents = encoder(media.inputs.get(kind))
            (there if kind in media.inputs else blank).append(latents)
        if not there:
            there, blank = blank[:1], blank[1:]
        placed = place_latents(torch.cat(there), media.slots)
        return placed + sum(latents.sum() * 0 for latents in blank) if blank else placed

    def forward(
        self,
        media: Media,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        documents: Tensor | None = None,
        *,
        with_logits: bool = False,
    ) -> FlamingoOutput:
        """Compute the loss terms. Collective in training mode when there are experts or pairs.

        Args:
            media: medium k of a row belongs to the k-th media token of the row.
            input_ids: long ``[B, T]``.
            attention_mask: bool ``[B, T]``, False for padding.
            labels: long ``[B, T]``, not shifted; -100 and media tokens are no targets.
            documents: long ``[B, T]``, which document of its row a token belongs to, -1 for padding,
                when rows are packed: documents of a row see neither text nor media of each other,
                and each begins at position 0. Its first token is no target.
            with_logits: also return all logits, which training never needs at once.

        Raises:
            ValueError: a row has more media tokens than media, or rows are packed and the language
                model cannot keep their documents apart.
        """
        mask = attention_mask.bool()
        latents = self.encode_media(media)
        context = self._context(latents, media.slots, mask, documents)
        targets = labels.masked_fill(self.token_ids.is_media(labels), -100)
        self.routers.clear()
        with self._fusion.using(context):
            hidden = self._body(input_ids, mask, documents)
            loss_sum, token_losses = self._loss(hidden, targets, context)
            logits = self._head(hidden) if with_logits else None
        # Evaluation may run on one rank alone, so only training counts over ranks.
        load_balance, z_loss = self.routers.losses(like=loss_sum, across_ranks=self.training)
        output = FlamingoOutput(
            loss_sum,
            (targets[:, 1:] != -100).sum(),
            token_losses,
            load_balance,
            z_loss,
            logits=logits,
        )
        if self.language_loss or self.contrastive is not None:
            self._unseen(output, context, input_ids, mask, targets)
        return output

    def _unseen(
        self,
        output: FlamingoOutput,
        context: FusionContext,
        input_ids: Tensor,
        mask: Tensor,
        targets: Tensor,
    ) -> None:
        """Fill in the losses of the text alone; one pass with the media hidden serves both."""
        # Hidden in the mask, not left out: every rank goes on using every parameter.
        context = replace(context, hide_media=True)
        with self._fusion.using(context):
            hidden = self._body(input_ids, mask, context.documents)
            if self.language_loss:
                output.language_loss_sum, _ = self._loss(hidden, targets, context)
        self.routers.clear()
        if self.contrastive is not None:
            documents = torch.where(mask, 0, -1) if context.documents is None else context.documents
            pairs = find_pairs(
                documents, self.token_ids.is_media(input_ids), targets, context.slots
            )
            output.contrastive_loss, output.contrastive_accuracy = self.contrastive(
                context.latents[pairs.row, pairs.slot],
                hidden[pairs.row, pairs.last],
                pairs.whole,
                across_ranks=self.training,
            )

    @torch.no_grad()
    def hidden_states(self, media: Media, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states ``[B, T, H]`` in front of the head, and no loss: nothing collective.

        Args:
            media: as in `forward`.
            input_ids: long ``[B, T]``, padded on either side.
            attention_mask: bool ``[B, T]``.
        """
        mask = attention_mask.bool()
        context = self._context(self.encode_media(media), media.slots, mask)
        with self._fusion.using(context):
            hidden = self._body(input_ids, mask, None)
        self.routers.clear()
        return hidden

    @torch.no_grad()
    def continuations(
        self, media: Media, input_ids: Tensor, attention_mask: Tensor
    ) -> Continuations:
        """Prompts behind which many texts are to be weighed; arguments as of `generate`.

        Raises:
            ValueError: a prompt ends with padding, or the language model keeps no keys and values.
        """
        mask = attention_mask.bool()
        context = self._context(self.encode_media(media), media.slots, mask)
        return Continuations(
            self._body,
            self._fusion,
            context,
            self._loss,
            self.routers,
            input_ids,
            mask,
        )

    @torch.no_grad()
    def media_vectors(self, media: Media) -> Tensor:
        """Unit vectors ``[B, D]`` of each row's first medium, by the contrastive head."""
        return self.contrastive.embed_media(self.encode_media(media)[:, 0])

    @torch.no_grad()
    def text_vectors(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit vectors ``[B, D]`` of texts padded on the right, by the contrastive head.

        Of each text's last token, with all media hidden, as in training.
        """
        mask = attention_mask.bool()
        slots = torch.zeros(len(input_ids), 1, dtype=torch.long, device=input_ids.device)
        context = self._context(self.encode_media(Media(slots)), slots, mask)
        with self._fusion.using(replace(context, hide_media=True)):
            hidden = self._body(input_ids, mask, None)
        self.routers.clear()
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.contrastive.embed_text(hidden[rows, mask.sum(1) - 1])

    def _context(
        self,
        latents: Tensor,
        slots: Tensor,
        mask: Tensor | None,
        documents: Tensor | None = None,
    ) -> FusionContext:
        real_tokens = None
        if mask is not None and not mask.is_meta and self.routers and not bool(mask.all()):
            real_tokens = mask.flatten().nonzero().squeeze(1)
        return FusionContext(
            latents, slots, *self.new_tokens(), real_tokens=real_tokens, documents=documents
        )

    @torch.no_grad()
    def generate(
        self, media: Media, input_ids: Tensor, attention_mask: Tensor, **settings: object
    ) -> Tensor:
        """Continue prompts with transformers' ``generate`` and its key-value cache.

        Args:
            media: as in `forward`; several images and examples in a prompt are few-shot.
            input_ids: long ``[B, T]``, padded on the left (`pad_left`).
            attention_mask: bool ``[B, T]``.
            **settings: of ``generate``: ``max_new_tokens``, ``eos_token_id``, ``pad_token_id``,
                ``num_beams``, ``do_sample``, ``temperature``, ``top_p``, ... Greedy by default.

        Returns:
            long ``[B, T + n]``, filled with the pad token behind each row's end.

        Raises:
            ValueError: a prompt ends with padding, or has more media tokens than media.
        """
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("a prompt ends with padding; pad prompts on the left to generate")
        context = self._context(self.encode_media(media), media.slots, attention_mask.bool())
        context.generating, context.real_tokens = True, None
        settings = {"do_sample": False, "num_beams": 1} | settings
        with self._fusion.using(context):
            tokens = self.language.generate(
                input_ids=input_ids,
                attention_mask=attention_mask.long(),
                suppress_tokens=list(self.token_ids.media.values()),
                **settings,
            )
        self.routers.clear()
        return tokens
