"""Writes report.html: one self-contained page to judge a dataset folder by eye."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.ingest.commit import SIZE_EDGES, shard_place
from data_prep.schema import Manifest
from data_prep.storage import Folder, write_file
from data_prep.tar_members import sample_parts

REPORT_NAME = "report.html"
_THUMBNAILS = 24
_SIZE_LABELS = [*(f"up to {edge}" for edge in SIZE_EDGES), f"over {SIZE_EDGES[-1]}"]
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .2rem .7rem .2rem 0; font-weight: normal }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #4878a8; height: .8rem; min-width: 1px }
.bar.lost { background: #c06040 }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem }
.pairs { grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)) }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem }
figure { margin: 0 } figure img { width: 100%; border: 1px solid #ddd }
figcaption { font-size: 12px; overflow-wrap: anywhere }
code { font-size: 12px; overflow-wrap: anywhere }
"""


def write_report(folder: Folder, manifest: Manifest, sizes: Sequence[int]) -> None:
    """Writes report.html of a dataset folder whose shards are all committed.

    Args:
        folder: the dataset folder.
        manifest: what is in it.
        sizes: images by the longer side of the original; place i is up to SIZE_EDGES[i] pixels.
    """
    share = 100 * manifest.samples / manifest.rows if manifest.rows else 0.0
    size = sum(s.bytes for s in manifest.shards) / 1e6
    parts = [
        f"<p><b>{manifest.samples:,}</b> samples of <b>{manifest.rows:,}</b> rows "
        f"({share:.1f}%) in <b>{len(manifest.shards):,}</b> shards, {size:,.1f} MB.</p>",
        f"<p><code>dataset {manifest.fingerprint}</code></p>",
        "<h2>How the rows ended</h2>",
        bars(
            [
                (status, count, "" if status == "ok" else " lost")
                for status, count in sorted(manifest.statuses.items(), key=lambda kv: -kv[1])
            ]
        ),
        "<h2>Longer side of the originals, pixels</h2>",
        bars([(label, n, "") for label, n in zip(_SIZE_LABELS, sizes, strict=True) if n]),
        "<h2>First samples</h2>",
        _thumbnails(folder, manifest),
    ]
    page = make_page(f"Ingest of {manifest.source}", parts)
    folder.write(REPORT_NAME, page.encode())


def make_page(title: str, parts: list[str]) -> str:
    """A page by itself; `title` is plain text, `parts` are HTML."""
    title = html.escape(title)
    head = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        f"<style>{_STYLE}</style><h1>{title}</h1>",
    )
    return "\n".join([*head, *parts, "</html>\n"])


def write_page(path: Path, title: str, parts: list[str]) -> Path:
    """Writes such a page to a disk, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, make_page(title, parts).encode())
    return path


def bars(rows: list[tuple[str, int, str]]) -> str:
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


def figure(image: bytes, text: str) -> str:
    """An encoded image with text below it."""
    data = base64.b64encode(image).decode()
    return (
        # Browsers go by the bytes themselves, so one type serves all formats.
        f"<figure><img src='data:image/jpeg;base64,{data}' alt=''>"
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
    )


def _thumbnails(folder: Folder, manifest: Manifest) -> str:
    shard = next((s for s in manifest.shards if s.samples), None)
    if shard is None:
        return "<p>None.</p>"
    place = shard_place(shard.name)
    index = np.load(io.BytesIO(folder.read(place.index)))[:_THUMBNAILS]
    figures = []
    with folder.open(place.tar) as file:
        at = 0
        for record in index:  # one after the other, as they lie in the tar
            file.read(int(record["offset"]) - at)
            span = file.read(int(record["bytes"]))
            at = int(record["offset"]) + len(span)
            _, (image, text) = sample_parts(span)
            figures.append(figure(image, text))
    return f"<div class=grid>{''.join(figures)}</div>"
