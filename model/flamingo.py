"""The whole model: frozen vision, resampler, gated blocks inside a frozen language model.

Shape legend: B batch, M media, S image side, T text tokens, P patches, L latents, V vocabulary.
"""

import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cross_attention import media_mask
from model.experts import router_losses
from model.language import Fusion, FusionContext
from model.resampler import PerceiverResampler
from model.vision import VisionEncoder


@dataclass
class FlamingoOutput:
    """What one forward gives.

    Attributes:
        loss_sum: summed token cross entropy, fp32 scalar; divide by a global token count.
        num_tokens: tokens in the sum, long scalar.
        load_balance_loss: mean over the expert blocks, fp32 scalar, 0 without experts; its mean
            over ranks is that of the joined batch.
        z_loss: likewise.
        logits: ``[B, T, V]``.
    """

    loss_sum: Tensor
    num_tokens: Tensor
    load_balance_loss: Tensor
    z_loss: Tensor
    logits: Tensor


class RouterTap:
    """Keeps the router logits of one block's last forward."""

    def __init__(self, store: dict[int, Tensor], block_index: int) -> None:
        self.store = store
        self.block_index = block_index

    def __call__(self, gate: nn.Module, args: tuple, logits: Tensor) -> None:
        """Record the logits."""
        self.store[self.block_index] = logits


class ImageToken(nn.Module):
    """The embedding of ``<image>``, at first the mean of the frozen ones.

    A module of its own and not a bare parameter of `Flamingo`: ZeRO-3 gathers a module's parameters
    for backward only when the module returns tensors.
    """

    def __init__(self, embedding_VH: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(embedding_VH.detach().float().mean(0, keepdim=True))

    def forward(self, embedded_BTH: Tensor, is_image_BT: Tensor) -> Tensor:
        """Put the embedding where ``is_image_BT`` is True."""
        return torch.where(
            is_image_BT.unsqueeze(-1), self.weight.to(embedded_BTH.dtype), embedded_BTH
        )


class Flamingo(nn.Module):
    """A vision-language model of two frozen towers and the trained parts between them.

    Args:
        vision: frozen image encoder.
        language: frozen transformers causal language model.
        resampler: patch features to latents.
        gated_blocks: one block per fused layer.
        layers: 0-based decoder layer that each block stands before.
        image_token_id: id of ``<image>``; never looked up in the frozen embedding, never a target.
        top_k: experts per token, for the router losses.

    Source: Flamingo (arXiv:2204.14198); open_flamingo, except that ``<image>`` is a parameter of
        its own instead of a row of an otherwise frozen embedding.
    """

    def __init__(
        self,
        vision: VisionEncoder,
        language: nn.Module,
        *,
        resampler: PerceiverResampler,
        gated_blocks: nn.ModuleList,
        layers: list[int],
        image_token_id: int,
        top_k: int = 1,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.language = language.requires_grad_(False).eval()
        self.resampler = resampler
        self.gated_blocks = gated_blocks
        self.image_token_id = image_token_id
        self.top_k = top_k
        self.image_token = ImageToken(language.get_input_embeddings().weight)
        self._fusion = Fusion(language, gated_blocks, layers)
        self._takes_positions = "position_ids" in inspect.signature(language.forward).parameters
        self._router_logits: dict[int, Tensor] = {}
        self._tapped: dict[int, nn.Module] = {}
        self.attach_router_hooks()

    def train(self, mode: bool = True) -> "Flamingo":
        """Train the parts between the towers; the frozen towers stay in eval mode."""
        super().train(mode)
        self.language.eval()
        return self

    @property
    def expert_modules(self) -> dict[str, nn.Module]:
        """Name to module of every mixture of experts; DeepSpeed AutoEP wants these names."""
        return {
            f"gated_blocks.{index}.feed_forward": block.feed_forward
            for index, block in enumerate(self.gated_blocks)
            if _find_router(block.feed_forward) is not None
        }

    def attach_router_hooks(self) -> None:
        """Capture router logits from now on.

        Call again after ``deepspeed.initialize``, which may have replaced the expert modules.
        Calling it twice changes nothing.
        """
        for index, block in enumerate(self.gated_blocks):
            router = _find_router(block.feed_forward)
            if router is not None and self._tapped.get(index) is not router:
                router.register_forward_hook(RouterTap(self._router_logits, index))
                self._tapped[index] = router

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode normalised images ``[B, M, 3, S, S]`` to latents ``[B, M, L, D]``."""
        features = self.vision(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return self.resampler(features.to(self.resampler.latents.dtype))

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embed tokens ``[B, T]`` to ``[B, T, H]``, ``<image>`` by its own parameter."""
        is_image = input_ids == self.image_token_id
        embedded = self.language.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        return self.image_token(embedded, is_image)

    def forward(
        self,
        images: Tensor,
        image_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
    ) -> FlamingoOutput:
        """Compute logits and loss terms. Collective in training mode when there are experts.

        Args:
            images: float ``[B, M, 3, S, S]``, normalised. M is at least 1: a batch without images
                brings masked dummies, so that every trained parameter gets a gradient.
            image_mask: bool ``[B, M]``, True for a real image; image k belongs to the k-th
                ``<image>`` of its row.
            input_ids: long ``[B, T]``.
            attention_mask: bool ``[B, T]``, False for padding.
            labels: long ``[B, T]``, not shifted; -100 and ``<image>`` are no targets.

        Raises:
            ValueError: a row has more image tokens than media slots.
        """
        visible_BTM = self._visible(input_ids, image_mask)
        context = FusionContext(self.encode_images(images), visible_BTM)
        self._router_logits.clear()
        with self._fusion.using(context):
            logits = self._run_language(self.embed(input_ids), attention_mask).logits
        targets = labels.masked_fill(labels == self.image_token_id, -100)[:, 1:]
        loss_sum = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=-100,
            reduction="sum",
        )
        load_balance, z_loss = self._router_losses(attention_mask, loss_sum)
        return FlamingoOutput(loss_sum, (targets != -100).sum(), load_balance, z_loss, logits)

    def _visible(self, input_ids: Tensor, image_mask: Tensor) -> Tensor:
        is_image = input_ids == self.image_token_id
        return media_mask(is_image, image_mask.shape[1]) & image_mask.bool().unsqueeze(1)

    def _run_language(self, embedded: Tensor, attention_mask: Tensor, cache=None):
        """Run the language model on the last ``embedded.shape[1]`` of the masked positions."""
        keywords = {}
        if self._takes_positions:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            keywords["position_ids"] = positions[:, -embedded.shape[1] :]
        if cache is not None:
            keywords["past_key_values"] = cache
        return self.language(
            inputs_embeds=embedded,
            attention_mask=attention_mask.long(),
            use_cache=cache is not None,
            **keywords,
        )

    def _router_losses(self, attention_mask: Tensor, loss_sum: Tensor) -> tuple[Tensor, Tensor]:
        if not self._router_logits:
            return loss_sum.new_zeros(()), loss_sum.new_zeros(())
        # Evaluation may run on one rank alone, so only training counts over ranks.
        losses = [
            router_losses(
                self._router_logits[index],
                attention_mask.flatten().bool(),
                self.top_k,
                across_ranks=self.training,
            )
            for index in sorted(self._router_logits)
        ]
        self._router_logits.clear()
        load_balance, z_loss = (torch.stack(terms).mean() for terms in zip(*losses, strict=True))
        return load_balance, z_loss

    @torch.no_grad()
    def generate(
        self,
        images: Tensor,
        image_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        eos_token_id: int,
        pad_token_id: int,
    ) -> Tensor:
        """Continue prompts greedily with a key-value cache.

        Args:
            images: as in `forward`.
            image_mask: as in `forward`.
            input_ids: long ``[B, T]``, padded on the left.
            attention_mask: bool ``[B, T]``.
            max_new_tokens: n at most.
            eos_token_id: ends a row.
            pad_token_id: fills a row behind its end.

        Returns:
            long ``[B, T + n]``; shorter when all rows ended earlier.

        Raises:
            ValueError: a prompt ends with padding.
        """
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("a prompt ends with padding; pad prompts on the left to generate")
        from transformers import DynamicCache

        visible_BTM = self._visible(input_ids, image_mask)
        media = self.encode_images(images)
        cache = DynamicCache(config=self.language.config)
        mask, tokens = attention_mask.bool(), input_ids
        pending = input_ids
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for _ in range(max_new_tokens):
            visible = visible_BTM if pending is input_ids else visible_BTM[:, -1:]
            with self._fusion.using(FusionContext(media, visible)):
                logits = self._run_language(self.embed(pending), mask, cache).logits[:, -1]
            if self.image_token_id < logits.shape[-1]:
                logits[:, self.image_token_id] = -torch.inf
            chosen = logits.argmax(-1).masked_fill(ended, pad_token_id)
            ended = ended | (chosen == eos_token_id)
            pending = chosen.unsqueeze(1)
            tokens = torch.cat([tokens, pending], dim=1)
            mask = torch.cat([mask, torch.ones_like(pending, dtype=torch.bool)], dim=1)
            if bool(ended.all()):
                break
        self._router_logits.clear()
        return tokens


def _find_router(feed_forward: nn.Module) -> nn.Module | None:
    """The module that puts out router logits: AutoEP's, DeepSpeed's own (by our tap), or ours."""
    for name in ("router.gate", "router_logits", "gate"):
        try:
            return feed_forward.get_submodule(name)
        except AttributeError:
            continue
    return None
