"""What is trained: a model, the loss of a batch, and what is left behind at the end. The loop knows no more.

`loss` returns the number to differentiate, and what to report: tensors left on their device, of which the
loop takes the sum over micro-steps and ranks. Token losses are
sums divided by the global number of target tokens, so that any split of a batch into ranks and micro-steps
gives the same gradient (DeepSpeed averages over ranks and micro-steps, hence the factor).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data_prep.errors import ConfigError, Problem
from model.build import build_flamingo
from model.contrastive import ContrastiveTowers
from model.identity import frozen_identity
from model.language import build_language
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.data.text import IGNORE
from pipeline.formats import (
    flamingo_features,
    flamingo_image,
    flamingo_text,
    tower_image,
    tower_text,
)


@dataclass(frozen=True)
class LossScale:
    """target_tokens: of the global batch; splits: world_size x accumulation_steps."""

    target_tokens: float
    splits: int


class FlamingoObjective:
    """Next-token loss of the captions, given the image; towers frozen.

    By weight also the loss of the text alone, and images against texts (section `loss`).

    Attributes:
        frozen: sha256 of each frozen tower's weights, by the configuration key that names it.
        features: folder of the image tower's features, to be read in training; None for pixels.
    """

    def __init__(self, config: RunConfig, dtype: torch.dtype = torch.float32):
        check_towers(config)
        try:
            self.text = flamingo_text(config)
            self.model = build_flamingo(
                config.model,
                token_ids=self.text.token_ids,
                seed=config.seed,
                losses=config.loss,
                dtype=dtype,
            )
        except (ImportError, ValueError) as error:
            rule = "towers load and fit the trained parts"
            raise ConfigError(
                [Problem("model", str(error), rule, "correct the key it names")]
            ) from error
        self.frozen = {
            f"model.{part}.path": frozen_identity(getattr(config.model, part).path)
            for part in ("vision", "language")
        }
        self.image = flamingo_image(config, self.model.vision)
        self.features = flamingo_features(config, self.frozen["model.vision.path"], self.image)
        if config.train.activation_checkpointing:
            self.model.checkpoint_activations()
        self._sources = list(config.data.sources)
        self._experts = config.model.experts
        self._weights = config.loss

    def loss(self, module: nn.Module, batch: Batch, scale: LossScale) -> tuple[Tensor, dict]:
        output = run_flamingo(module, batch)
        weights, share = self._weights, scale.splits / scale.target_tokens
        loss = weights.caption * share * output.loss_sum
        router = (
            self._experts.load_balance_weight * output.load_balance_loss
            + self._experts.z_loss_weight * output.z_loss
        )
        report = {
            "loss_sum": output.loss_sum.detach(),
            "source_losses": self._source_losses(output.token_losses, batch),
            "load_balance_loss": output.load_balance_loss.detach(),
            "z_loss": output.z_loss.detach(),
        }
        if output.language_loss_sum is not None:
            loss = loss + weights.language * share * output.language_loss_sum
            report["language_loss"] = share * output.language_loss_sum.detach()
        if output.contrastive_loss is not None:
            loss = loss + weights.contrastive * output.contrastive_loss
            report["contrastive_loss"] = output.contrastive_loss.detach()
            report["contrastive_top1"] = output.contrastive_accuracy.detach()
        return loss + router, report

    def _source_losses(self, token_losses: Tensor, batch: Batch) -> Tensor:
        """``[S, 2]``: summed caption loss and target tokens of every source."""
        sources = batch.token_sources(self._sources)[:, 1:].flatten()
        targets = batch.labels[:, 1:].flatten() != IGNORE
        pairs = torch.stack([token_losses.flatten(), targets.to(token_losses.dtype)], dim=1)
        sums = pairs.new_zeros(len(self._sources) + 1, 2)
        return sums.index_add(0, sources.to(pairs.device, non_blocking=True), pairs)[:-1]

    def finish(self, module: nn.Module) -> None:
        pass


class LanguageObjective:
    """Next-token loss of the captions alone: the small language tower."""

    frozen: dict[str, str] = {}
    features: Path | None = None

    def __init__(self, config: RunConfig, dtype: torch.dtype = torch.float32):
        torch.manual_seed(config.seed)
        self.text = tower_text(config)
        tokenizer = self.text.tokenizer
        self.model = build_language(
            config.tower, len(tokenizer), eos_token_id=tokenizer.eos_token_id
        )
        self.image = None  # not one image needs to be decoded
        self._folder = Path(config.model.language.path)

    def loss(self, module: nn.Module, batch: Batch, scale: LossScale) -> tuple[Tensor, dict]:
        logits = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss_sum = nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
        )
        return loss_sum * scale.splits / scale.target_tokens, {"loss_sum": loss_sum.detach()}

    def finish(self, module: nn.Module) -> None:
        module.save_pretrained(self._folder)
        self.text.tokenizer.save_pretrained(self._folder)


class ContrastiveObjective:
    """InfoNCE between images and captions: the small image tower."""

    frozen: dict[str, str] = {}
    features: Path | None = None

    def __init__(self, config: RunConfig, dtype: torch.dtype = torch.float32):
        torch.manual_seed(config.seed)
        self.text = tower_text(config)
        self.model = ContrastiveTowers(
            config.tower,
            vocab_size=len(self.text.tokenizer),
            form=config.loss.contrastive_form,
        )
        self.image = tower_image(config)
        self._folder = Path(config.model.vision.path)

    def loss(self, module: nn.Module, batch: Batch, scale: LossScale) -> tuple[Tensor, dict]:
        output = module(
            batch.media.inputs["image"].data[:, 0], batch.input_ids, batch.attention_mask
        )
        return output.loss, {
            "contrastive": output.loss.detach(),
            "top1": output.accuracy.detach(),
        }

    def finish(self, module: nn.Module) -> None:
        module.save_vision(self._folder)


OBJECTIVES = {
    "flamingo": FlamingoObjective,
    "language": LanguageObjective,
    "contrastive": ContrastiveObjective,
}


def run_flamingo(module: nn.Module, batch: Batch):
    """Forward pass of a batch that `Batch.to` has moved."""
    return module(batch.media, batch.input_ids, batch.attention_mask, batch.labels, batch.documents)


def check_towers(config: RunConfig) -> None:
    """Refuse tower folders that are not there.

    Raises:
        ConfigError: with every missing tower.
    """
    problems = []
    for part, run in (("vision", "vision"), ("language", "language")):
        path = getattr(config.model, part).path
        local = path.startswith((".", "/", "runs")) or str(config.root) in path
        if local and not (Path(path) / "config.json").is_file():
            problems.append(
                Problem(
                    f"model.{part}.path",
                    path,
                    "is a folder with a pretrained model (config.json)",
                    f"pretrain it first, e.g. roseate train demo_{run}",
                )
            )
    if problems:
        raise ConfigError(problems)
