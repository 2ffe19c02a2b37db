"""What a visitor of the chat page has laid out, and what a checkpoint answers to it."""

import threading
from dataclasses import dataclass, field

import torch
from PIL import Image

from data_prep.errors import ConfigError, Problem
from pipeline.attention_picture import COLUMNS, draw_words, look_at_words
from pipeline.generation.generate import continue_prompts
from pipeline.generation.settings import Sampling
from pipeline.prompts import Part, place_images
from pipeline.trained import Trained

# A model runs one prompt at a time, and the random numbers are of the whole process.
_ONE_AT_A_TIME = threading.Lock()


@dataclass
class Shown:
    """An image that was dropped in.

    Attributes:
        name: of its file.
        data: the file.
        text: its whole text where it is an example.
    """

    name: str
    data: bytes
    text: str = ""


@dataclass
class Desk:
    """What a person has laid out.

    Attributes:
        images: of the query.
        examples: in front of it, each with its text.
        prompt: beginning of the text.
        sampling: how it is continued.
    """

    images: list[Shown] = field(default_factory=list)
    examples: list[Shown] = field(default_factory=list)
    prompt: str = ""
    sampling: Sampling = field(default_factory=Sampling)

    def parts(self) -> list[Part]:
        """The prompt.

        Raises:
            ConfigError: naming all that is missing, and marks that do not fit the images.
        """
        problems = self.sampling.problems()
        if not self.images:
            problems.append(Problem("image", None, "is dropped in", "drop an image in first"))
        for example in self.examples:
            if not example.text.strip():
                rule, remedy = "has a text beside its image", "write it, or take it away"
                problems.append(Problem("example", example.name, rule, remedy))
        if problems:
            raise ConfigError(problems)
        parts: list[Part] = []
        for example in self.examples:
            parts += [example.data, example.text]
        return parts + place_images(self.prompt, [image.data for image in self.images], "prompt")

    @property
    def names(self) -> list[str]:
        """Of all images, in the order in which they stand."""
        return [shown.name for shown in (*self.examples, *self.images)]


def answer(trained: Trained, desk: Desk, columns: int = COLUMNS) -> tuple[str, Image.Image | None]:
    """(what the model says, where it looked for each word; None where it said nothing).

    May be called from several threads.

    Args:
        trained: the model.
        desk: what it is asked.
        columns: of the picture, at most.

    Raises:
        ConfigError: see `Desk.parts`, or an image cannot be decoded, or the prompt is too long.
    """
    parts = desk.parts()
    with _ONE_AT_A_TIME:
        torch.manual_seed(desk.sampling.seed)
        (text,) = continue_prompts(
            trained, [parts], desk.sampling, keys=["prompt"], names=[desk.names]
        )
        if not text:
            return text, None
        parameter = next(trained.objective.model.parameters())
        found = look_at_words(trained.objective, parts, text, dtype=parameter.dtype)
    return text, draw_words(found, most_columns=columns)
