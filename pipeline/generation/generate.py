"""Texts after prompts, batch by batch."""

import re
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path

import torch

from data_prep.errors import ConfigError, Problem
from pipeline.attention_picture import draw_words, look_at_words
from pipeline.generation.requests import Request, WrongRequest
from pipeline.generation.settings import Sampling
from pipeline.prompts import Part, Prompts, continue_texts, encode_prompts
from pipeline.trained import Trained

BATCH_SIZE = 16


def generate(
    trained: Trained,
    requests: Iterable[Request | WrongRequest],
    sampling: Sampling,
    *,
    batch_size: int = BATCH_SIZE,
    keep_going: bool = False,
    looks: dict[str, Path] | None = None,
) -> Iterator[dict]:
    """A row for each request, in order: `id`, and `text` or `error`.

    Args:
        trained: the model.
        requests: taken as they come.
        sampling: how texts are continued.
        batch_size: prompts continued together.
        keep_going: what is wrong with a request becomes its `error`, and costs its own row alone.
        looks: id to a file for the picture of where the model looked; such a row also has `attention`.

    Raises:
        ConfigError: unless `keep_going`, all that is wrong in a batch; the rows before it are out.
    """
    torch.manual_seed(sampling.seed)
    left = iter(requests)
    while batch := list(islice(left, batch_size)):
        yield from _batch(trained, batch, sampling, keep_going, looks or {})


def continue_prompts(
    trained: Trained,
    prompts: list[list[Part]],
    sampling: Sampling,
    *,
    keys: list[str] | None = None,
    names: list[list[str]] | None = None,
) -> list[str]:
    """What the model says after each prompt.

    Args:
        trained: the model.
        prompts: each an image file's bytes and texts in reading order.
        sampling: how they are continued.
        keys: that name the prompts, for messages.
        names: of each prompt's images, for messages.

    Raises:
        ConfigError: naming every prompt with an image that cannot be decoded, or, when there are none,
            every one that is too long for the language model.
    """
    objective = trained.objective
    encoded = encode_prompts(objective.text, objective.image, prompts, keys=keys, names=names)
    if problems := _too_long(trained, encoded, sampling, keys):
        raise ConfigError(problems)
    parameter = next(objective.model.parameters())
    return continue_texts(
        objective.model,
        objective.text,
        encoded,
        parameter.device,
        parameter.dtype,
        **sampling.of_generate(),
    )


def _too_long(
    trained: Trained, encoded: Prompts, sampling: Sampling, keys: list[str] | None
) -> list[Problem]:
    most = trained.objective.model.max_positions
    if most is None:
        return []
    problems = []
    for number, length in enumerate(encoded.attention_mask.sum(1).tolist()):
        if length + sampling.max_new_tokens > most:
            key = keys[number] if keys else f"prompt {number}"
            rule = f"with --max-new-tokens {sampling.max_new_tokens} fits into {most} positions"
            remedy = "give fewer or shorter examples, or ask for fewer tokens"
            problems.append(Problem(key, f"{length} tokens", rule, remedy))
    return problems


def _batch(
    trained: Trained,
    requests: list[Request | WrongRequest],
    sampling: Sampling,
    keep_going: bool,
    looks: dict[str, Path],
) -> Iterator[dict]:
    wrong: dict[int, list[Problem]] = {}
    prompts: dict[int, list[Part]] = {}
    for number, request in enumerate(requests):
        if isinstance(request, WrongRequest):
            wrong[number] = request.problems
            continue
        try:
            prompts[number] = request.parts()
        except ConfigError as error:
            wrong[number] = error.problems
    texts = _continue(trained, requests, prompts, sampling, wrong)
    if wrong and not keep_going:
        raise ConfigError([problem for number in sorted(wrong) for problem in wrong[number]])
    for number, request in enumerate(requests):
        if number in wrong:
            yield {"id": request.id, "error": "; ".join(map(_told, wrong[number]))}
            continue
        row = {"id": request.id, "text": texts[number]}
        if request.id in looks and request.files:
            draw_attention(trained, prompts[number], texts[number], looks[request.id])
            row["attention"] = str(looks[request.id])
        yield row


def _continue(
    trained: Trained,
    requests: list[Request | WrongRequest],
    prompts: dict[int, list[Part]],
    sampling: Sampling,
    wrong: dict[int, list[Problem]],
) -> dict[int, str]:
    """Texts of all prompts that can be continued; what is wrong with the others goes to `wrong`."""
    while prompts:
        keys = {f"{requests[number].key} #{number}": number for number in prompts}
        names = [[str(file) for file in requests[number].files] for number in prompts]
        try:
            texts = continue_prompts(
                trained, [*prompts.values()], sampling, keys=[*keys], names=names
            )
            return dict(zip(prompts, texts, strict=True))
        except ConfigError as error:
            for problem in error.problems:
                number = keys[problem.key]
                told = Problem(requests[number].key, problem.value, problem.rule, problem.remedy)
                wrong.setdefault(number, []).append(told)
                prompts.pop(number, None)
    return {}


def _told(problem: Problem) -> str:
    return f"{problem.key}: {problem.value}: {problem.rule}"


def picture_files(requests: Iterable[Request | WrongRequest], folder: Path) -> dict[str, Path]:
    """Id of each request to a file of its own below a folder, the same for the same requests."""
    files: dict[str, Path] = {}
    taken: set[str] = set()
    for request in requests:
        if isinstance(request, WrongRequest):
            continue
        plain = Path(request.id).stem if request.id in map(str, request.files) else request.id
        stem = re.sub(r"[^\w.-]+", "_", plain)[:100]
        names = (f"{stem}{'' if n == 1 else f'-{n}'}.attention.png" for n in count(1))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        files[request.id] = folder / name
    return files


def draw_attention(trained: Trained, parts: list[Part], text: str, path: Path) -> None:
    """A picture of where the model looked for each word."""
    parameter = next(trained.objective.model.parameters())
    found = look_at_words(trained.objective, parts, text, dtype=parameter.dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_words(found, text[:120]).save(path)
