"""Images against texts over the batches of all ranks: CLIP's softmax form and SigLIP's sigmoid form.

Shape legend: B pairs of this rank, W ranks, X = W * B, D embedding width, L latents, H text width.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

MAX_LOG_SCALE = math.log(100.0)


class GatherRows(torch.autograd.Function):
    """Join the rows of all ranks; the gradient of a row comes back summed over ranks."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        """Return ``[W * B, D]``; every rank must bring the same B."""
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """Sum over ranks and take this rank's rows."""
        # A copy: autograd may hand the same tensor to others.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows_BD: Tensor) -> Tensor:
    """Join the rows of all ranks to ``[W * B, D]``, in the order of the ranks; alone, the rows.

    When every rank computes the same loss of the joined rows, the mean over ranks of a parameter's
    gradients is the gradient of that loss. Collective, forward and backward; every rank must bring
    the same B. A mask travels as one more column, so that it costs no collective of its own.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows_BD
    return GatherRows.apply(rows_BD)


class Capped(torch.autograd.Function):
    """``value.clamp(max=limit)``, except that a value beyond the limit can still be pulled back.

    A plain clamp has no gradient there: a temperature that a step carried over would stay for good.
    CLIP instead clamps the parameter after each step.
    """

    @staticmethod
    def forward(ctx, value: Tensor, limit: float) -> Tensor:
        """Return the same shape."""
        ctx.save_for_backward(value > limit)
        return value.clamp(max=limit)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """Drop gradients that would drive a value further beyond the limit."""
        (beyond,) = ctx.saved_tensors
        return gradient.masked_fill(beyond & (gradient < 0), 0.0), None


class PairLoss(nn.Module):
    """Tells matching pairs from all others, at a learned temperature.

    Every rank computes the loss of the joined batch. Its gradient with respect to this rank's rows
    comes back summed over the ranks, so the mean over ranks, as DeepSpeed takes it, is the gradient of
    the joined batch once.

    Args:
        form: ``info_nce``, softmax over the batch in both directions, its scale at most 100 (CLIP,
            arXiv:2103.00020 figure 3); ``sigmoid``, every pair on its own, the sum over all pairs
            divided by the matching ones (SigLIP, arXiv:2303.15343 algorithm 1).

    Raises:
        ValueError: another form.
    """

    def __init__(self, form: str = "info_nce") -> None:
        super().__init__()
        if form not in ("info_nce", "sigmoid"):
            raise ValueError(f"form = {form!r} is neither info_nce nor sigmoid")
        self.form = form
        first = 1 / 0.07 if form == "info_nce" else 10.0
        self.log_scale = nn.Parameter(torch.full((1,), math.log(first)))
        self.bias = nn.Parameter(torch.full((1,), -10.0)) if form == "sigmoid" else None

    def forward(
        self,
        image_BD: Tensor,
        text_BD: Tensor,
        valid_B: Tensor | None = None,
        *,
        across_ranks: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Compute loss and accuracy over the batch joined over ranks.

        Args:
            image_BD: unit vectors.
            text_BD: unit vectors; row b belongs to image b.
            valid_B: bool, False for rows that are no pair; they count on neither side, whatever they
                hold. The number of such rows may differ over ranks, B may not.
            across_ranks: False compares within this rank and calls no collective.

        Returns:
            (mean loss over the valid pairs, share of rows whose own partner is the nearest, over both
            directions), scalars in fp32, or fp64 for fp64 rows; 0 when no pair is valid.
        """
        dtype = torch.promote_types(image_BD.dtype, torch.float32)
        image, text = image_BD.to(dtype), text_BD.to(dtype)
        valid = torch.ones_like(image[:, 0], dtype=torch.bool) if valid_B is None else valid_B
        # Zeros and not only a mask on the scores: what is not finite would come back by 0 * NaN.
        image = image.masked_fill(~valid.unsqueeze(1), 0.0)
        text = text.masked_fill(~valid.unsqueeze(1), 0.0)
        if across_ranks:
            joined = gather_rows(torch.cat([image, text, valid.unsqueeze(1).to(dtype)], dim=1))
            image, text, valid = joined.tensor_split([image.shape[1], 2 * image.shape[1]], dim=1)
            valid = valid.squeeze(1) > 0
        logits_XX = self._scale(dtype) * (image @ text.T)
        own_XX = torch.eye(len(valid), dtype=torch.bool, device=valid.device)
        pair_XX = valid.unsqueeze(1) & valid
        count = valid.sum().clamp(min=1)
        # A row that is no pair keeps its own score alone: its loss and its gradient are exactly 0.
        compared_XX = logits_XX.masked_fill(~(pair_XX | own_XX), -torch.inf)
        if self.form == "info_nce":
            own = torch.arange(len(valid), device=valid.device)
            rows = F.cross_entropy(compared_XX, own, reduction="sum")
            columns = F.cross_entropy(compared_XX.T, own, reduction="sum")
            loss = (rows + columns) / 2 / count
        else:
            logits_XX = logits_XX + self.bias.to(dtype)
            losses_XX = F.softplus(torch.where(own_XX, -logits_XX, logits_XX))
            loss = losses_XX.masked_fill(~pair_XX, 0.0).sum() / count
        return loss, _accuracy(compared_XX.detach(), valid)

    def _scale(self, dtype: torch.dtype) -> Tensor:
        """Return ``[1]``; only CLIP bounds it."""
        log_scale = self.log_scale.to(dtype)
        if self.form == "info_nce":
            log_scale = Capped.apply(log_scale, MAX_LOG_SCALE)
        return log_scale.exp()


def _accuracy(compared_XX: Tensor, valid_X: Tensor) -> Tensor:
    """Share of valid rows and columns whose own score is the highest."""
    own = torch.arange(len(valid_X), device=valid_X.device)
    hits_X = (compared_XX.argmax(1) == own).long() + (compared_XX.argmax(0) == own).long()
    return (hits_X * valid_X).sum().to(compared_XX.dtype) / (2 * valid_X.sum().clamp(min=1))


class UnitProjection(nn.Module):
    """LayerNorm, a matrix without bias, and length 1, in fp32 however the weights are kept.

    One module with parameters of its own, as ZeRO-3 wants them: a cast within `nn.LayerNorm` and
    `nn.Linear` would need a class for each.

    Args:
        width: of the features.
        embed_dim: D.
    """

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.norm_bias = nn.Parameter(torch.zeros(width))
        self.weight = nn.Parameter(torch.empty(embed_dim, width))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, width]`` to unit vectors ``[B, D]`` in fp32, or fp64 for fp64 features."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        norm_weight, norm_bias = self.norm_weight.to(dtype), self.norm_bias.to(dtype)
        features = F.layer_norm(features.to(dtype), norm_weight.shape, norm_weight, norm_bias)
        return F.normalize(F.linear(features, self.weight.to(dtype)), dim=-1)


class ContrastiveHead(nn.Module):
    """Latents of a medium and the feature of a text to one space, and `PairLoss` there.

    Args:
        media_width: width of the latents.
        text_width: H.
        embed_dim: D.
        form: see `PairLoss`.

    Raises:
        ValueError: another form.
    """

    def __init__(self, media_width: int, text_width: int, embed_dim: int, form: str) -> None:
        super().__init__()
        self.media_projection = UnitProjection(media_width, embed_dim)
        self.text_projection = UnitProjection(text_width, embed_dim)
        self.pairs = PairLoss(form)

    def forward(
        self,
        latents_BLD: Tensor,
        text_BH: Tensor,
        valid_B: Tensor | None = None,
        *,
        across_ranks: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return loss and accuracy; the latents of a medium are averaged.

        Args:
            latents_BLD: latents, here of their own width D.
            text_BH: one feature for each text.
            valid_B: see `PairLoss`.
            across_ranks: see `PairLoss`.
        """
        media, text = _mean_latent(latents_BLD), text_BH
        if valid_B is not None:
            media, text = (t.masked_fill(~valid_B.unsqueeze(1), 0.0) for t in (media, text))
        media, text = self.media_projection(media), self.text_projection(text)
        return self.pairs(media, text, valid_B, across_ranks=across_ranks)

    def embed_media(self, latents_BLD: Tensor) -> Tensor:
        """Unit vectors ``[B, D]`` of media."""
        return self.media_projection(_mean_latent(latents_BLD))

    def embed_text(self, text_BH: Tensor) -> Tensor:
        """Unit vectors ``[B, D]`` of texts."""
        return self.text_projection(text_BH)


def _mean_latent(latents_BLD: Tensor) -> Tensor:
    return latents_BLD.to(torch.promote_types(latents_BLD.dtype, torch.float32)).mean(1)
