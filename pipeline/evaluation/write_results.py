"""What an evaluation leaves behind: JSON, a page and pictures, on disk and to the tracker."""

import json
from pathlib import Path

import torch

from data_prep.storage import write_file
from pipeline.attention_picture import draw_words, look_at_words, stack
from pipeline.config import RunConfig
from pipeline.distributed import DistInfo
from pipeline.evaluation.contact_sheet import contact_sheet
from pipeline.evaluation.page import write_results_page
from pipeline.evaluation.results import Results
from pipeline.evaluation.task import Task
from pipeline.objectives import FlamingoObjective
from pipeline.tracking.tracker import Tracker

WORDS_DRAWN = 4  # captions whose words are drawn


def metrics_of(results: list[Results]) -> dict[str, float]:
    """``evaluation/{suite}/{figure}`` to its value, as in MLflow."""
    return {
        f"evaluation/{r.suite}/{figure.key}": figure.value
        for r in results
        for figure in r.figures
        if figure.value is not None
    }


def plain_figures(results: list[Results], task: Task) -> dict:
    """The figures of all suites by their own names, and how many samples they are about."""
    found: dict = {"samples": len(task.records)}
    for result in results:
        for figure in result.figures:
            found.setdefault(figure.key, figure.value)
    return found


def write_results(
    results: list[Results],
    task: Task,
    folder: Path,
    config: RunConfig,
    tracker: Tracker,
    step: int,
) -> Path:
    """JSON of every suite and one page, on disk and to the tracker; the page's path."""
    step_name = f"step_{step:06d}"
    for result in results:
        result.save(folder / result.suite / "results.json")
        tracker.file(
            folder / result.suite / "results.json", f"evaluation/{step_name}/{result.suite}"
        )
        said = {c: [row.said[c] for row in result.rows] for c in _conditions(result)}
        if result.suite == "captioning" and config.evaluation.pictures and result.rows:
            sheet = contact_sheet(task.records.items, said, config.evaluation.pictures)
            sheet.save(folder / "captions.png")
            tracker.picture(sheet, f"evaluation/{step_name}/captions.png")
        if said:
            table = {
                "key": [row.key for row in result.rows],
                "truth": [" | ".join(row.truth) for row in result.rows],
                **{condition or "said": texts for condition, texts in said.items()},
            }
            write_file(folder / result.suite / "said.json", json.dumps(table, indent=1).encode())
            tracker.table(table, f"evaluation/{step_name}/{result.suite}.json")
    page = write_results_page(folder / "page.html", [(r, task.images) for r in results])
    tracker.file(page, f"evaluation/{step_name}")
    tracker.metrics(metrics_of(results), step)
    return page


def draw_captions(
    results: list[Results],
    task: Task,
    objective: FlamingoObjective,
    folder: Path,
    tracker: Tracker,
    step: int,
    info: DistInfo,
    dtype: torch.dtype,
) -> None:
    """A picture of where the model looks for each word of some captions; calls the model on this rank alone."""
    captions = next((r for r in results if r.suite == "captioning"), None)
    if captions is None:
        return
    sheets = []
    for number in range(0, len(captions.rows), max(1, len(captions.rows) // WORDS_DRAWN)):
        said, record = captions.rows[number].said.get(""), task.records.items[number]
        if said and len(sheets) < WORDS_DRAWN:
            found = look_at_words(objective, [record.image.open()], said, info, dtype)
            sheets.append(draw_words(found, f"{record.key}: {said[:100]}"))
    if sheets:
        picture = stack(sheets)
        picture.save(folder / "attention.png")
        tracker.picture(picture, f"evaluation/step_{step:06d}/attention.png")


def _conditions(result: Results) -> list[str]:
    return [*dict.fromkeys(condition for row in result.rows for condition in row.said)]
