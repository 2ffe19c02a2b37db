"""The page of an evaluation: figures with intervals, and the samples that tell most, with pictures."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.report import write_page
from pipeline.evaluation.figure_names import condition_label, figure_label, figure_meaning
from pipeline.evaluation.layouts.record import ImageSource
from pipeline.evaluation.results import Figure, Results
from pipeline.evaluation.sample_cards import number_text, sample_sections

COLUMNS = 6
_STYLE = """<style>
body { max-width: 76rem }
table.figures { width: auto }
table.figures td { border-top: 1px solid #e4e4e4; vertical-align: top; padding-right: 2.5rem }
table.figures tr:first-child td { border: 0; color: #666; font-size: 13px }
.value { font-variant-numeric: tabular-nums; white-space: nowrap }
.interval, .meaning, .legend { color: #666; font-size: 12px }
.sure { color: #1d6b35 } .against { color: #a03020 }
.grid { grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)) }
figure { border: 1px solid #ddd; padding: .6rem }
figure img { border: 0; max-height: 15rem; object-fit: contain; background: #f4f4f4 }
figcaption p { margin: .45rem 0 0 } .label { color: #666; display: block; font-size: 11px }
figcaption ul { margin: 0; padding-left: 1rem } .said { font-size: 14px }
figcaption td { color: #666; padding: 0 .5rem 0 0 } figcaption table { margin-top: .45rem }
.nothing { color: #888; font-style: italic }
.picture { height: 15rem; background: #f4f4f4; display: grid; place-items: center; text-align: center }
.wide { overflow-x: auto }
nav a { margin-right: 1rem } summary { cursor: pointer; color: #4878a8; margin: .6rem 0 }
</style>"""


def write_results_page(
    path: Path, suites: Sequence[tuple[Results, Mapping[str, ImageSource]]]
) -> Path:
    """Writes the page of one checkpoint's results; it needs no file and no network to be looked at.

    Args:
        path: of the page.
        suites: the results of each suite, and the images of its rows by `Row.key`. One that is not
            there or cannot be read is said to be so in its place.

    Raises:
        ValueError: no suite is given.
    """
    if not suites:
        raise ValueError("a page needs the results of at least one suite")
    checkpoint = suites[0][0].checkpoint
    title = f"Evaluation of {checkpoint.run} at step {checkpoint.step:,}"
    parts = [_STYLE, f"<p><code>{html.escape(checkpoint.path)}</code>"]
    if checkpoint.run_id:
        parts.append(f"<br><code>MLflow run {html.escape(checkpoint.run_id)}</code>")
    if len(suites) > 1:
        links = (f"<a href='#{i}'>{_words(r.suite)}</a>" for i, (r, _) in enumerate(suites))
        parts.append(f"<nav>{''.join(links)}</nav>")
    for number, (results, images) in enumerate(suites):
        parts.append(f"<h2 id='{number}'>{_words(results.suite)}</h2>")
        parts += [_data(results), *(f"<p>{html.escape(note)}</p>" for note in results.notes)]
        parts += [_figures(results.figures), _settings(results)]
        parts += sample_sections(results, images)
    return write_page(path, title, parts)


def _words(name: str) -> str:
    return html.escape(name.replace("_", " "))


def _data(results: Results) -> str:
    """What it was evaluated on, and what is missing of it."""
    data = results.data
    if data is None:
        return ""
    counts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in data.counts.items() if n)
    lines = [
        f"<p>On {html.escape(data.place)} ({html.escape(data.layout)}): {html.escape(counts)}."
    ]
    if data.missing:
        first = "".join(f"<li><code>{html.escape(name)}</code>" for name in data.missing)
        lines.append(
            "<details open><summary><b>Not everything was there: figures of whole sets do not "
            f"compare with these.</b> The first that are missing:</summary><ul>{first}</ul></details>"
        )
    return "\n".join(lines)


def _figures(figures: list[Figure]) -> str:
    """A row a metric and a column a condition; the other way round where there are many conditions."""
    conditions = [*dict.fromkeys(figure.condition for figure in figures)]
    names = [*dict.fromkeys(figure.name for figure in figures)]
    at = {(figure.name, figure.condition): figure for figure in figures}
    labels = [html.escape(condition_label(c)) for c in conditions]
    labels = labels if conditions != [""] else ["value"]
    table = [[_cell(at.get((name, c))) for c in conditions] for name in names]
    better = {figure.name: figure.better for figure in figures}
    across, down = labels, [_metric(name, better[name]) for name in names]
    if len(conditions) > COLUMNS:
        table, across, down = [*zip(*table, strict=True)], down, labels
    rows = [f"<tr><td>{''.join(f'<td>{label}' for label in across)}"]
    for label, cells in zip(down, table, strict=True):
        rows.append(f"<tr><td>{label}{''.join(f'<td>{cell}' for cell in cells)}")
    samples = {f"{figure.samples:,}" for figure in figures}
    some = any(figure.low is not None for figure in figures)
    brackets = " In brackets the 95% interval of the bootstrap over samples." if some else ""
    colours = (
        " A difference in colour is one whose interval leaves out 0: "
        "<span class=sure>better</span> or <span class=against>worse</span> than that."
        if any(c.startswith("minus_") for c in conditions)
        else ""
    )
    legend = (
        f"<p class=legend>&uarr; higher is better, &darr; lower is better.{brackets}{colours} "
        f"Samples: {', '.join(sorted(samples))}.</p>"
    )
    table = f"<div class=wide><table class=figures>{''.join(rows)}</table></div>"
    return table + legend if figures else ""


def _metric(name: str, better: str) -> str:
    arrow = "&darr;" if better == "lower" else "&uarr;"
    meaning = f"<br><span class=meaning>{html.escape(figure_meaning(name))}</span>"
    return f"{html.escape(figure_label(name))} <span class=meaning>{arrow}</span>{meaning}"


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "<span class=nothing>not run</span>"
    if figure.value is None:
        return "<span class=nothing>no number</span>"
    kind = sign = ""
    if figure.condition.startswith("minus_"):
        sign = "+" if figure.value > 0 else ""
        if figure.low is not None and figure.high is not None and figure.low * figure.high > 0:
            good = (figure.value > 0) == (figure.better == "higher")
            kind = " sure" if good else " against"
    unit = f" {html.escape(figure.unit)}" if figure.unit else ""
    text = f"<span class='value{kind}'>{sign}{number_text(figure.value)}{unit}</span>"
    if figure.low is None or figure.high is None:
        return text
    bounds = f"[{number_text(figure.low)}, {number_text(figure.high)}]"
    return f"{text}<br><span class='value interval'>{bounds}</span>"


def _settings(results: Results) -> str:
    settings = dict(results.settings)
    if results.data and results.data.fingerprint:
        settings["data fingerprint"] = results.data.fingerprint
    if results.seconds is not None:
        settings["seconds"] = round(results.seconds, 1)
    rows = "".join(
        f"<tr><td>{html.escape(str(k))}<td><code>{html.escape(str(v))}</code>"
        for k, v in settings.items()
    )
    return f"<details><summary>Settings</summary><table>{rows}</table></details>"
