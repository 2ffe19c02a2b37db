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
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """Sum over ranks and take this rank's rows."""
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class PairLoss(nn.Module):
    """Tells matching pairs from all others, at a learned temperature.

    Every rank computes the loss of the joined batch. Its gradient with respect to this rank's rows
    comes back summed over the ranks, so the mean over ranks, as DeepSpeed takes it, is the gradient of
    the joined batch once.

    Args:
        form: ``info_nce``, softmax over the batch in both directions (CLIP, arXiv:2103.00020 figure
            3); ``sigmoid``, every pair on its own (SigLIP, arXiv:2303.15343 algorithm 1).

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
            valid_B: bool, False for rows that are no pair; they count on neither side.
            across_ranks: False compares within this rank and calls no collective.

        Returns:
            (mean loss over the valid pairs, share of rows whose own partner is the nearest, over both
            directions), fp32 scalars; 0 when no pair is valid.
        """
        valid = torch.ones_like(image_BD[:, 0], dtype=torch.bool) if valid_B is None else valid_B
        image, text = image_BD.float(), text_BD.float()
        if across_ranks and dist.is_available() and dist.is_initialized():
            image, text = GatherRows.apply(image), GatherRows.apply(text)
            valid = GatherRows.apply(valid.float()) > 0
        logits_XX = self.log_scale.float().clamp(max=MAX_LOG_SCALE).exp() * image @ text.T
        if self.bias is not None:
            logits_XX = logits_XX + self.bias.float()
        count = valid.sum().clamp(min=1)
        loss_X = self._losses(logits_XX, valid)
        loss = torch.where(valid, loss_X, 0.0).sum() / count
        hidden = logits_XX.detach().masked_fill(~valid, -torch.inf)
        own = torch.arange(len(valid), device=valid.device)
        across = logits_XX.detach().T.masked_fill(~valid, -torch.inf)
        hits = ((hidden.argmax(1) == own).float() + (across.argmax(1) == own).float()) / 2
        return loss, torch.where(valid, hits, 0.0).sum() / count

    def _losses(self, logits_XX: Tensor, valid_X: Tensor) -> Tensor:
        """Loss of every row; those of rows that are no pair may hold anything finite."""
        if self.form == "info_nce":
            own = torch.arange(len(logits_XX), device=logits_XX.device)
            # A finite fill: a row of minus infinities alone would be NaN, also in the gradient.
            lowest = torch.finfo(logits_XX.dtype).min
            rows = logits_XX.masked_fill(~valid_X, lowest)
            columns = logits_XX.T.masked_fill(~valid_X, lowest)
            return (
                F.cross_entropy(rows, own, reduction="none")
                + F.cross_entropy(columns, own, reduction="none")
            ) / 2
        sign = 2 * torch.eye(len(logits_XX), device=logits_XX.device) - 1
        return -(F.logsigmoid(sign * logits_XX) * valid_X).sum(1)


class ContrastiveHead(nn.Module):
    """Latents of a medium and the feature of a text to one space, and `PairLoss` there.

    Args:
        media_width: width of the latents.
        text_width: H.
        embed_dim: D.
        form: see `PairLoss`.
    """

    def __init__(self, media_width: int, text_width: int, embed_dim: int, form: str) -> None:
        super().__init__()
        self.media_projection = nn.Sequential(
            nn.LayerNorm(media_width), nn.Linear(media_width, embed_dim, bias=False)
        )
        self.text_projection = nn.Sequential(
            nn.LayerNorm(text_width), nn.Linear(text_width, embed_dim, bias=False)
        )
        self.pairs = PairLoss(form)

    def forward(
        self,
        latents_BLD: Tensor,
        text_BH: Tensor,
        valid_B: Tensor | None = None,
        *,
        across_ranks: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return loss and accuracy, see `PairLoss`; the latents of a medium are averaged."""
        media = F.normalize(self.media_projection(latents_BLD.mean(1)).float(), dim=-1)
        text = F.normalize(self.text_projection(text_BH).float(), dim=-1)
        return self.pairs(media, text, valid_B, across_ranks=across_ranks)
