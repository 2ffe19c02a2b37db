"""A model that is asked: texts generated after prompts, and how likely given texts are, on all ranks.

Batches are made of the prompts alone, and the ranks take turns at them: what a batch holds, and so every
number, is the same for any number of ranks. Every rank calls the model as often as every other, since the
experts of a model may be divided over them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from data_prep.errors import ConfigError, Problem
from model.flamingo import Flamingo
from model.padding import pad_right
from pipeline.distributed import DistInfo
from pipeline.evaluation.layouts.record import ImageSource
from pipeline.objectives import FlamingoObjective
from pipeline.progress import RunProgress
from pipeline.prompts import (
    Part,
    Prompts,
    continue_texts,
    encode_prompts,
    prompt_ids,
    text_ids,
)

T, R = TypeVar("T"), TypeVar("R")
Ask = list[ImageSource | bytes | str]  # images and texts in reading order
# What a figure is held against: the same prompts with black images.
CONTROLLED = ("", "zero_image")


@dataclass(frozen=True)
class Text:
    """A text after a prompt, to be weighed.

    Attributes:
        ask: the prompt.
        text: what follows it.
        ends: whether its end marks count too, as they do in training.
    """

    ask: Ask
    text: str
    ends: bool = True


class Asker:
    """Asks one model.

    Args:
        objective: how texts and images are read.
        model: the Flamingo, with its weights; whole on every rank, or its experts divided.
        info: the ranks, all of which make the same calls.
        dtype: of the model.
        batch_size: prompts that the model takes together.
        max_new_tokens: generated after a prompt.
        in_step: experts or weights are divided over the ranks: all generate as long as any does.
        silent: show no progress.

    Attributes:
        cut_texts: weighed texts whose last tokens were left out, since the language model has no positions
            for them; of all ranks.
    """

    def __init__(
        self,
        objective: FlamingoObjective,
        model: Flamingo,
        info: DistInfo,
        *,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 16,
        max_new_tokens: int = 24,
        in_step: bool = False,
        silent: bool = False,
    ) -> None:
        self.text, self.image, self.model = objective.text, objective.image, model
        self.info, self.dtype, self.batch_size = info, dtype, batch_size
        self.max_new_tokens, self._in_step = max_new_tokens, in_step
        self._silent = silent or not info.is_main
        self.cut_texts = 0

    def length(self, ask: Ask) -> int:
        """Tokens of a prompt; no image is opened."""
        parts = [part if isinstance(part, str) else b"" for part in ask]
        return len(prompt_ids(self.text, [parts])[0])

    def check_room(self, asks: Sequence[Ask], behind: int) -> None:
        """Refuse prompts for which the language model has no positions, with so many tokens behind them.

        Raises:
            ConfigError: likewise.
        """
        limit = self.model.max_positions
        if limit is None:
            return
        lengths = [self.length(ask) for ask in asks]
        long = [n for n, length in enumerate(lengths) if length + behind > limit]
        if long:
            longest = max(long, key=lengths.__getitem__)
            rule = (
                f"gives prompts that the language model has positions for, {limit} with {behind} tokens "
                f"behind a prompt; {len(long)} of {len(asks)} have not, the longest has "
                f"{lengths[longest]} tokens: {_name(asks[longest])}"
            )
            remedy = "lower evaluation.max_new_tokens, or shorten what is asked and its examples"
            raise ConfigError([Problem("evaluation.data", None, rule, remedy)])

    def answers(
        self, asks: Sequence[Ask], *, zero_image: bool = False, num_beams: int = 1, name: str = ""
    ) -> list[str]:
        """What the model says after each prompt, without its end marks; greedy, or by beams.

        Raises:
            ConfigError: the language model has no positions for a prompt and what is to come.
        """
        self.check_room(asks, self.max_new_tokens)

        def work(part: Sequence[Ask]) -> list[str]:
            prompts = self.prompts(part, zero_image)
            settings = {"synced_gpus": True} if self._in_step and self.info.world_size > 1 else {}
            return continue_texts(
                self.model,
                self.text,
                prompts,
                self.info.device,
                self.dtype,
                max_new_tokens=self.max_new_tokens,
                num_beams=num_beams,
                **settings,
            )

        return self.each(asks, work, name)

    def controlled(
        self, asks: Sequence[Ask], name: str, *, num_beams: int = 1
    ) -> dict[str, list[str]]:
        """`answers` by condition, `CONTROLLED`."""
        return {
            condition: self.answers(
                asks,
                zero_image=condition == "zero_image",
                num_beams=num_beams,
                name=f"{name} {condition.replace('_', ' ')}".strip(),
            )
            for condition in CONTROLLED
        }

    def nats(
        self, texts: Sequence[Text], *, zero_image: bool = False, name: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Summed negative log-likelihood of each text after its prompt, and the number of its tokens."""

        def work(part: Sequence[Text]) -> list[tuple[float, int, bool]]:
            prompts = self.prompts([t.ask for t in part], zero_image)
            rows = [self._row(prompts, number, text) for number, text in enumerate(part)]
            ids, mask = pad_right([row for row, _, _ in rows], self.text.pad_id)
            labels = ids.masked_fill(~mask, -100)
            for number, (_, first, _) in enumerate(rows):
                labels[number, :first] = -100
            device = self.info.device
            with torch.no_grad():
                output = self.model(
                    prompts.media(device, self.dtype),
                    *(t.to(device) for t in (ids, mask, labels)),
                )
            sums = output.token_losses.double().sum(1).tolist()
            return [(s, len(r) - first, cut) for s, (r, first, cut) in zip(sums, rows, strict=True)]

        found = self.each(texts, work, name)
        nats, tokens, cut = zip(*found, strict=True) if found else ((), (), ())
        self.cut_texts += sum(cut)
        return np.array(nats, np.float64), np.array(tokens, np.int64)

    def image_features(self, images: Sequence[ImageSource], name: str = "") -> np.ndarray:
        """Unit vectors ``[N, width]`` of the frozen tower: the mean over its patches."""

        def work(part: Sequence[ImageSource]) -> list[np.ndarray]:
            prompts = encode_prompts(self.text, self.image, [[i.open()] for i in part])
            media = prompts.media(self.info.device, self.dtype).inputs["image"]
            with torch.no_grad():
                features = self.model.media_encoders["image"].encode(media.data)
            mean = features.float().mean(dim=(1, 2))
            return [*torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()]

        return np.stack(self.each(images, work, name))

    def each(
        self, items: Sequence[T], work: Callable[[Sequence[T]], list[R]], name: str = ""
    ) -> list[R]:
        """`work` on batches of the items, the ranks taking turns; all results on every rank."""
        size, ranks = self.batch_size, self.info.world_size
        starts = [*range(0, len(items), size)]
        mine: dict[int, list[R]] = {}
        rounds = -(-len(starts) // ranks)
        with RunProgress(name, total=rounds, done=0, silent=self._silent, unit="batch") as progress:
            for turn in range(rounds):
                number = turn * ranks + self.info.rank
                # A rank without a batch does the last one again: its calls are waited for.
                start = starts[min(number, len(starts) - 1)]
                found = work(items[start : start + size])
                if number < len(starts):
                    mine[number] = found
                progress.step(turn + 1)
        parts = [mine]
        if ranks > 1:
            parts = [None] * ranks
            dist.all_gather_object(parts, mine)
        whole = {number: found for part in parts for number, found in part.items()}
        return [result for number in range(len(starts)) for result in whole[number]]

    def prompts(self, asks: Sequence[Ask], zero_image: bool) -> Prompts:
        """Images opened, all as the model takes them.

        Raises:
            ConfigError: naming every prompt with an image that cannot be decoded.
            OSError: an image cannot be read.
        """
        opened: list[list[Part]] = [
            [part if isinstance(part, bytes | str) else part.open() for part in ask] for ask in asks
        ]
        prompts = encode_prompts(self.text, self.image, opened, keys=[_name(ask) for ask in asks])
        return prompts.zero_images() if zero_image else prompts

    def _row(self, prompts: Prompts, number: int, text: Text) -> tuple[list[int], int, bool]:
        """(tokens of a prompt and its text, place of the first that counts, whether the last are left out)."""
        before = prompts.input_ids[number][prompts.attention_mask[number]].tolist()
        behind = text_ids(self.text, text.text) + (self.text.end_ids if text.ends else [])
        limit = self.model.max_positions
        whole = len(behind)
        if limit is not None and len(before) < limit:
            behind = behind[: limit - len(before)]
        return before + behind, len(before), len(behind) < whole


def _name(ask: Ask) -> str:
    names = [part.name for part in ask if not isinstance(part, bytes | str)]
    return ", ".join(names) or "prompt"
