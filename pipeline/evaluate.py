"""Caption held-out images with the image and with it zeroed, and compare with the true captions."""

import json
import textwrap
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from data_prep.errors import ConfigError, Problem
from pipeline.checkpoint import check_frozen, find_checkpoint, read_state, read_weights
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.data.held_out import HeldOut
from pipeline.distributed import DistInfo
from pipeline.engine import load_trainable
from pipeline.objectives import FlamingoObjective
from pipeline.tracking import open_tracker
from pipeline.validation import held_out_losses

BATCH = 32
TILE = 224


def load_run(config: RunConfig) -> tuple[FlamingoObjective, dict]:
    """The objective with the trained weights of the newest whole checkpoint, and the checkpoint's state.

    Raises:
        ConfigError: the run has no checkpoint, or a frozen tower has changed since.
    """
    folder = config.run_folder / "checkpoints"
    path = find_checkpoint(folder)
    if path is None:
        raise ConfigError(
            [
                Problem(
                    "name",
                    config.name,
                    f"has a checkpoint in {folder}",
                    "train first: roseate train CONFIG",
                )
            ]
        )
    objective = FlamingoObjective(config)
    check_frozen(path, objective.frozen)
    load_trainable(objective.model, read_weights(path))
    objective.model.eval()
    return objective, read_state(path)


def caption(objective: FlamingoObjective, batch: Batch, config, *, zero_image: bool) -> list[str]:
    """Greedy captions of a batch's images; the batch's own texts are not looked at."""
    prompt = torch.tensor(objective.text.prompt).expand(len(batch.keys), -1)
    batch = batch.zero_images() if zero_image else batch
    parameter = next(objective.model.parameters())
    ids = objective.model.generate(
        batch.to(parameter.device, parameter.dtype).media,
        prompt,
        torch.ones_like(prompt, dtype=torch.bool),
        max_new_tokens=config.max_new_tokens,
        eos_token_id=objective.text.end_ids,
        pad_token_id=objective.text.pad_id,
    )
    return [objective.text.decode(row[prompt.shape[1] :].tolist()) for row in ids]


def evaluate(config: RunConfig) -> dict:
    """Held-out losses, captions and, where a grammar is known, attribute accuracy; logged to the run.

    Returns:
        The figures; `chance` is the attribute accuracy of the best constant answer, the most that
        can be had without looking.
    """
    objective, state = load_run(config)
    held_out = HeldOut(config.data, objective.text, objective.image)
    batches = held_out.batches(config.evaluation.max_samples, BATCH)
    one = DistInfo(0, 1, torch.device("cpu"))
    figures: dict = held_out_losses(objective.model, batches, one, torch.float32)
    truth, with_image, zeroed = [], [], []
    for batch in track(
        batches, description="captions", transient=True, console=Console(stderr=True)
    ):
        truth += batch.texts
        with_image += caption(objective, batch, config.evaluation, zero_image=False)
        zeroed += caption(objective, batch, config.evaluation, zero_image=True)
    figures["samples"] = len(truth)
    figures["exact_match"] = _exact(with_image, truth)
    figures["exact_match_zero_image"] = _exact(zeroed, truth)
    if config.evaluation.attributes == "scenes":
        from data_prep.examples.scenes import parse_caption

        figures["attribute_accuracy"] = attribute_accuracy(with_image, truth, parse_caption)
        figures["attribute_accuracy_zero_image"] = attribute_accuracy(zeroed, truth, parse_caption)
        figures["attribute_accuracy_chance"] = chance(truth, parse_caption)
        figures["by_attribute"] = by_attribute(with_image, truth, parse_caption)
    folder = config.run_folder / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        "key": [k for b in batches for k in b.keys],
        "caption": truth,
        "with_image": with_image,
        "zero_image": zeroed,
    }
    (folder / "captions.json").write_text(json.dumps(table, indent=1))
    sheet = _contact_sheet(batches, table, config.evaluation.pictures)
    sheet.save(folder / "captions.png")
    tracker = open_tracker(config, is_main=True, run_id=state["run_id"])
    numbers = {k: v for k, v in figures.items() if isinstance(v, float)}
    tracker.metrics({f"evaluation/{k}": v for k, v in numbers.items()}, state["step"])
    tracker.table(table, "captions.json")
    tracker.picture(sheet, "captions.png")
    tracker.end()
    return {"run": config.name, "step": state["step"], "mlflow_run_id": state["run_id"]} | figures


Parser = Callable[[str], dict[str, str] | None]


def attribute_accuracy(captions: list[str], truth: list[str], parse: Parser) -> float:
    """Share of the true captions' attributes that the captions name rightly."""
    right = total = 0
    for said, true in zip(captions, truth, strict=True):
        wanted, got = parse(true) or {}, parse(said) or {}
        right += sum(got.get(name) == value for name, value in wanted.items())
        total += len(wanted)
    return right / total


def by_attribute(captions: list[str], truth: list[str], parse: Parser) -> dict[str, float]:
    right, total = Counter(), Counter()
    for said, true in zip(captions, truth, strict=True):
        got = parse(said) or {}
        for name, value in (parse(true) or {}).items():
            total[name] += 1
            right[name] += got.get(name) == value
    return {name: right[name] / total[name] for name in sorted(total)}


def chance(truth: list[str], parse: Parser) -> float:
    """Attribute accuracy of the best constant answer on these captions."""
    values: dict[str, Counter] = {}
    for true in truth:
        for name, value in (parse(true) or {}).items():
            values.setdefault(name, Counter())[value] += 1
    best = sum(counter.most_common(1)[0][1] for counter in values.values())
    return best / sum(counter.total() for counter in values.values())


def _exact(captions: list[str], truth: list[str]) -> float:
    return float(np.mean([c == t for c, t in zip(captions, truth, strict=True)]))


def _contact_sheet(batches: list[Batch], table: dict, count: int) -> Image.Image:
    """Pictures in a grid, each over its true caption, the generated one, and the one without image."""
    count = min(count, len(table["caption"]))
    pictures = [batch.picture(i) for batch in batches for i in range(len(batch.keys))]
    columns = max(1, min(4, count))
    rows = -(-count // columns)
    height = TILE + 120
    sheet = Image.new("RGB", (columns * (TILE + 16), max(1, rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i in range(count):
        sample = i * len(table["caption"]) // count  # spread over the whole set
        picture = pictures[sample]
        scale = TILE / max(picture.size)
        picture = picture.resize([max(1, round(s * scale)) for s in picture.size])
        x, y = i % columns * (TILE + 16) + 8, i // columns * height
        sheet.paste(picture, (x, y + 4))
        said = (("true", "caption"), ("image", "with_image"), ("blind", "zero_image"))
        lines = []
        for label, column in said:
            lines += textwrap.wrap(f"{label}: {table[column][sample]}", 38)[:3]
        draw.multiline_text((x, y + TILE + 8), "\n".join(lines), fill="black")
    return sheet
