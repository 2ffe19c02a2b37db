"""Writes report.html: one self-contained page to judge a dataset folder by eye."""

import base64
import html
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_prep.schema import Manifest
from data_prep.shards import shard_paths
from data_prep.tar_members import sample_parts

_THUMBNAILS = 24
_BINS = 12
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .2rem .7rem .2rem 0; font-weight: normal }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #4878a8; height: .8rem; min-width: 1px }
.bar.lost { background: #c06040 }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem }
figure { margin: 0 } figure img { width: 100%; border: 1px solid #ddd }
figcaption { font-size: 12px; overflow-wrap: anywhere }
code { font-size: 12px; overflow-wrap: anywhere }
"""


def write_report(folder: Path, manifest: Manifest) -> Path:
    """Writes the page of a dataset folder whose shards are all committed.

    Returns:
        the path of report.html.
    """
    share = 100 * manifest.samples / manifest.rows if manifest.rows else 0.0
    size = sum(s.bytes for s in manifest.shards) / 1e6
    parts = [
        f"<p><b>{manifest.samples:,}</b> samples of <b>{manifest.rows:,}</b> rows "
        f"({share:.1f}%) in <b>{len(manifest.shards):,}</b> shards, {size:,.1f} MB.</p>",
        f"<p><code>dataset {manifest.fingerprint}</code></p>",
        "<h2>How the rows ended</h2>",
        _bars(
            [
                (status, count, "" if status == "ok" else " lost")
                for status, count in sorted(manifest.statuses.items(), key=lambda kv: -kv[1])
            ]
        ),
        "<h2>Longer side of the originals, pixels</h2>",
        _bars(_sizes(folder, manifest)),
        "<h2>First samples</h2>",
        _thumbnails(folder, manifest),
    ]
    return write_page(Path(folder) / "report.html", f"Ingest of {manifest.source}", parts)


def write_page(path: Path, title: str, parts: list[str]) -> Path:
    """Write a page whole or not at all; `title` is plain text, `parts` are HTML."""
    title = html.escape(title)
    head = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        f"<style>{_STYLE}</style><h1>{title}</h1>",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text("\n".join([*head, *parts, "</html>\n"]), encoding="utf-8")
    os.replace(temporary, path)
    return path


def _bars(rows: list[tuple[str, int, str]]) -> str:
    """A table of label, count and a bar of that length; the third item is a CSS class."""
    most = max((count for _, count, _ in rows), default=0) or 1
    return (
        "<table>"
        + "".join(
            f"<tr><td>{html.escape(label)}<td class=number>{count:,}<td style='width:60%'>"
            f"<div class='bar{kind}' style='width:{100 * count / most:.1f}%'></div>"
            for label, count, kind in rows
        )
        + "</table>"
    )


def _sizes(folder: Path, manifest: Manifest) -> list[tuple[str, int, str]]:
    """Histogram over powers of two; ledgers are read one by one."""
    edges = 2 ** np.arange(4, 4 + _BINS)
    counts = np.zeros(len(edges) + 1, dtype=np.int64)
    for shard in manifest.shards:
        ledger = pq.read_table(
            shard_paths(folder, shard.name)[2], columns=["original_width", "original_height"]
        )
        columns = [np.array(c.drop_null().to_numpy()) for c in ledger.columns]
        longer = np.maximum(*columns)
        counts += np.bincount(np.searchsorted(edges, longer), minlength=len(counts))
    labels = [f"up to {e}" for e in edges] + [f"over {edges[-1]}"]
    return [(label, int(n), "") for label, n in zip(labels, counts, strict=True) if n]


def _thumbnails(folder: Path, manifest: Manifest) -> str:
    figures: list[str] = []
    for shard in manifest.shards:
        if shard.samples == 0:
            continue
        tar_path, index_path, _ = shard_paths(folder, shard.name)
        with tar_path.open("rb") as file:
            for record in np.load(index_path)[:_THUMBNAILS]:
                file.seek(int(record["offset"]))
                _, (image, text) = sample_parts(file.read(int(record["bytes"])))
                data = base64.b64encode(image).decode()
                figures.append(
                    # Browsers go by the bytes themselves, so one type serves all formats.
                    f"<figure><img src='data:image/jpeg;base64,{data}' alt=''>"
                    f"<figcaption>{html.escape(text)}</figcaption></figure>"
                )
        break  # the first shard that has any
    return f"<div class=grid>{''.join(figures)}</div>" if figures else "<p>None.</p>"
