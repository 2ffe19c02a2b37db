"""report.html of a whole recipe: figures, captions as pictures, and where everything else lies."""

import base64
import html
import os
from pathlib import Path

from data_prep.report import write_page
from pipeline.config import RunConfig

FIGURES = (
    ("attribute_accuracy", "attributes named rightly"),
    ("attribute_accuracy_zero_image", "the same with the image zeroed"),
    ("attribute_accuracy_chance", "the best constant answer"),
    ("exact_match", "captions right word for word"),
    ("exact_match_zero_image", "the same with the image zeroed"),
    ("held_out_loss", "held-out loss, nats per token"),
    ("held_out_loss_zero_image", "the same with the image zeroed"),
    ("samples", "held-out samples captioned"),
)


def headline(summary: dict) -> dict:
    """What a person wants to read first, from the summary of a recipe."""
    sources = summary["ingest"]["sources"]
    found = {f"rows_{name}": source["statuses"] for name, source in sources.items()}
    figures = summary.get("evaluate", {})
    found |= {key: figures[key] for key, _ in FIGURES if key in figures}
    if "train" in summary:
        found["mlflow_run_id"] = summary["train"]["mlflow_run_id"]
    return found | {"seconds": round(summary["seconds"], 1)}


def where_to_look(config: RunConfig, summary: dict) -> list[str]:
    """The paths and commands that a recipe ends with."""
    root = Path(config.root)
    lines = [f"report     {root / 'report.html'}", f"summary    {root / 'summary.json'}"]
    if page := summary.get("evaluate", {}).get("page"):
        lines.append(f"evaluation {page}")
    for name in config.ingest.sources:
        lines.append(f"ingest     {Path(config.ingest.output) / name / 'report.html'}")
    if config.tracking.uri:
        lines.append(f"curves     mlflow ui --backend-store-uri {config.tracking.uri}")
    return lines


def write_report(config: RunConfig, summary: dict) -> Path:
    """Write {root}/report.html, self-contained but for its links to the ingest reports."""
    root = Path(config.root)
    parts = [
        "<h2>Held-out samples</h2>",
        _table(_figures(summary.get("evaluate", {}))),
        *_pictures(summary.get("evaluate", {}).get("page")),
        "<h2>Rows</h2>",
        _table(_rows(config, root, summary["ingest"]["sources"])),
        *_curated(root, summary.get("curate")),
        "<h2>Training</h2>",
        _table(_runs(summary)),
        "<h2>Where to look</h2>",
        f"<pre>{html.escape(chr(10).join(where_to_look(config, summary)))}</pre>",
    ]
    return write_page(root / "report.html", f"Roseate: {root.name}", parts)


def _figures(figures: dict) -> list[list[str]]:
    return [
        [label, f"{figures[key]:.4g}" if isinstance(figures[key], float) else str(figures[key])]
        for key, label in FIGURES
        if key in figures
    ]


def _rows(config: RunConfig, root: Path, sources: dict) -> list[list[str]]:
    rows = [["source", "rows", "how they ended", "report"]]
    for name, source in sources.items():
        ended = ", ".join(f"{count:,} {status}" for status, count in source["statuses"].items())
        page = os.path.relpath(Path(config.ingest.output) / name / "report.html", root)
        link = f"<a href='{html.escape(page)}'>look</a>"
        rows.append([html.escape(name), f"{source['rows']:,}", html.escape(ended), link])
    return rows


def _curated(root: Path, summary: dict | None) -> list[str]:
    if summary is None:
        return []
    page = html.escape(os.path.relpath(summary["page"], root))
    rows = [["source", "samples", "stay", "left out", "report"]]
    for name, source in summary["sources"].items():
        left_out = ", ".join(f"{count:,} {rule}" for rule, count in source["left_out"].items())
        counts = f"{source['samples']:,}", f"{source['kept']:,}"
        link = f"<a href='{page}'>look</a>"
        rows.append([html.escape(name), *counts, html.escape(left_out), link])
    return ["<h2>Curation</h2>", _table(rows)]


def _runs(summary: dict) -> list[list[str]]:
    rows = [["run", "steps", "processes", "precision", "samples/s", "seconds", "MLflow run"]]
    for run in summary.values():
        if isinstance(run, dict) and "world_size" in run:
            numbers = f"{run.get('samples_per_second', 0):.0f}", f"{run['seconds']:.0f}"
            counts = str(run["steps"]), str(run["world_size"]), run["precision"]
            rows.append([html.escape(run["run"]), *counts, *numbers, str(run["mlflow_run_id"])])
    return rows


def _table(rows: list[list[str]]) -> str:
    lines = ("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows)
    return f"<table>{''.join(lines)}</table>"


def _pictures(page: str | None) -> list[str]:
    """The pictures beside the page of an evaluation."""
    folder = Path(page).parent if page else None
    names = {"captions.png": "captions", "attention.png": "where it looks for each word"}
    found = [n for n in names if folder is not None and (folder / n).is_file()]
    if not found:
        return ["<p>No captions yet.</p>"]
    parts = []
    for name in found:
        data = base64.b64encode((folder / name).read_bytes()).decode()
        source = f"data:image/png;base64,{data}"
        parts.append(f"<p><img style='max-width:100%' src='{source}' alt='{names[name]}'>")
    return parts
