"""The samples on an evaluation's page that tell most: chosen, and shown with picture and texts."""

import base64
import html
import io
from collections import Counter
from collections.abc import Callable, Mapping

from PIL import Image

from data_prep.image.formats import DECODE_ERRORS, FORMATS
from data_prep.image.pixels import rgb_on_white
from pipeline.evaluation.figure_names import condition_label, figure_better, key_label
from pipeline.evaluation.layouts.record import ImageSource
from pipeline.evaluation.results import Results, Row

SAMPLES = 12
THUMBNAIL = 240
TEXTS = 3


def sample_sections(results: Results, images: Mapping[str, ImageSource]) -> list[str]:
    """HTML of the hardest samples, the most wrong ones, and those that the image misled.

    Args:
        results: of a suite.
        images: by `Row.key`.
    """
    sections = []
    for title, by, rows in _chosen(results):
        cards = "".join(_card(row, images.get(row.key)) for row in rows[:SAMPLES])
        head = f"<h3>{title}</h3><p class=legend>{html.escape(by)}</p>"
        sections.append(f"{head}<div class=grid>{cards}</div>")
    return sections


def number_text(value: float) -> str:
    """Three decimals, fewer of large numbers."""
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 3}f}"


def _chosen(results: Results) -> list[tuple[str, str, list[Row]]]:
    """Sections of samples: title, what they were chosen by, and the samples."""
    first = results.figures[0].key if results.figures else ""
    wrong, hard = results.wrong_by or first, results.hard_by
    better = {figure.key: figure.better for figure in results.figures}
    lower = better.get(wrong, figure_better(wrong)) == "lower"
    sections = []
    if hard:
        rows = _ranked(results.rows, lambda row: row.scores.get(hard))[::-1]
        by = f"Highest {key_label(hard)}: what is true surprised the model most."
        sections.append(("Hardest samples", by, rows))
    rows = _ranked(results.rows, lambda row: row.scores.get(wrong))
    by = f"{'Highest' if lower else 'Lowest'} {key_label(wrong)}; each sample by itself."
    sections.append(("Most wrong", by, rows[::-1] if lower else rows))
    blind = f"{wrong}_zero_image"
    misled = [row for row in results.rows if _gain(row, wrong, blind, lower) < 0]
    misled = _ranked(misled, lambda row: _gain(row, wrong, blind, lower))
    by = f"{key_label(wrong)} is better without the image: {len(misled):,} samples."
    sections.append(("Misled by the image", by, misled))
    return [section for section in sections if section[2]]


def _ranked(rows: list[Row], by: Callable[[Row], float | None]) -> list[Row]:
    """Rows that have the number, lowest first; equals in the order they have."""
    return sorted((row for row in rows if by(row) is not None), key=by)


def _gain(row: Row, key: str, other: str, lower: bool) -> float:
    """By how much a sample is better with its image than without; 0 where that is not known."""
    mine, theirs = row.scores.get(key), row.scores.get(other)
    if mine is None or theirs is None:
        return 0.0
    return theirs - mine if lower else mine - theirs


def _card(row: Row, image: ImageSource | None) -> str:
    parts = [_text("asked", html.escape(row.question))] if row.question else []
    truth = [
        html.escape(text) + (f" <span class=meaning>&times; {times}</span>" if times > 1 else "")
        for text, times in Counter(row.truth).most_common()
    ]
    more = [f"<i>and {len(truth) - TEXTS} more</i>"] if len(truth) > TEXTS else []
    items = "".join(f"<li>{text}" for text in truth[:TEXTS] + more)
    parts.append(_text("true", truth[0] if len(truth) == 1 else f"<ul>{items}</ul>"))
    for condition, text in row.said.items():
        said = html.escape(text) if text.strip() else "<span class=nothing>nothing</span>"
        label = f"said, {html.escape(condition_label(condition))}" if condition else "said"
        parts.append(_text(label, f"<span class=said>{said}</span>"))
    numbers = "".join(
        f"<tr><td>{html.escape(key_label(key))}<td class='number value'>"
        f"{'no number' if value is None else number_text(value)}"
        for key, value in row.scores.items()
    )
    caption = f"{''.join(parts)}<table>{numbers}</table><code>{html.escape(row.key)}</code>"
    return f"<figure>{_thumbnail(image)}<figcaption>{caption}</figcaption></figure>"


def _text(label: str, text: str) -> str:
    return f"<p><span class=label>{label}</span>{text}</p>"


def _thumbnail(source: ImageSource | None) -> str:
    if source is None:
        return "<div class='picture nothing'>no picture</div>"
    try:
        image = Image.open(io.BytesIO(source.open()), formats=FORMATS)
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        image = rgb_on_white(image)
    except (OSError, *DECODE_ERRORS) as error:
        reason = html.escape(f"{type(error).__name__}: {error}"[:200])
        return f"<div class='picture nothing'>cannot be shown<br>{reason}</div>"
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img src='data:image/jpeg;base64,{data}' alt='{html.escape(source.name)}'>"
