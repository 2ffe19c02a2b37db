"""`roseate data show`: the global batch at a position, as a table and as a page to look at."""

import base64
import html
import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from data_prep.errors import ConfigError, Problem
from data_prep.report import write_page
from model.vision import plan_vision
from pipeline.checkpoint.store import find_checkpoint, open_store
from pipeline.config import RunConfig
from pipeline.data.batch import Batch, collate
from pipeline.data.loader import TrainStream
from pipeline.data.text import IGNORE
from pipeline.formats import flamingo_image, flamingo_text, tower_image, tower_text

LONGEST_TEXT = 60
STYLE = """<style>
.row { border: 1px solid #bbb; padding: .3rem; margin: .6rem 0; line-height: 1.9 }
.row img { height: 4.5rem; vertical-align: middle; margin: 0 .2rem; border: 1px solid #888 }
.token { padding: .05rem .1rem; margin: 0 1px; white-space: pre-wrap; font: 13px monospace }
.target { background: #cfe8cf } .plain { background: #e6e6e6 } .padding { color: #aaa }
.document { border-left: 3px solid #4878a8; padding-left: .3rem; margin-left: .3rem }
</style>"""


def show_data(config: RunConfig, *, position: int, num_samples: int | None = None) -> dict:
    """Read what a step that begins at a position sees, in the run's own order.

    Images are decoded even where training reads their features from `data.features`.

    Args:
        config: of the run. If it has a checkpoint, the weights that held before it are taken from there.
        position: in the global order; step s begins at s * batch.global_size.
        num_samples: of the batch, default all.

    Returns:
        {"batch": `Batch`, "samples": one dict for each sample, "tokens", "padding_ratio",
        "sources": samples by source, "text": the format}.

    Raises:
        ConfigError: the position is negative, a source or a tower cannot be read.
    """
    problems = [
        Problem(name, value, f"is at least {least}", f"give {least} or more")
        for name, value, least in (("--position", position, 0), ("--samples", num_samples, 1))
        if value is not None and value < least
    ]
    if problems:
        raise ConfigError(problems)
    text, image = _formats(config)
    found = find_checkpoint(open_store(config))
    resume = (found.state["data"], str(found)) if found else None
    stream = TrainStream(config.data, config.seed, text, image, resume=resume)
    size = num_samples or config.batch.global_size
    places = stream.order.batch(position, config.batch.global_size)
    places = places[np.argsort(places.position)][:size]
    samples, replaced = stream.reader.read(places)
    batch = collate(
        samples,
        image,
        pad_id=text.pad_id,
        pack_tokens=config.data.pack_tokens,
        replaced=replaced,
    )
    epochs, names = stream.order.epoch(places), [*stream.datasets]
    table = [
        {
            "position": int(places.position[i]),
            "source": names[places.source[i]],
            "epoch": int(epochs[i]),
            "shard": stream.reader.datasets[places.source[i]].manifest.shards[places.shard[i]].path,
            "key": sample.key,
            "images": len(sample.pixels),
            "tokens": len(sample.encoded.ids),
            "targets": sample.encoded.num_targets,
            "text": sample.text,
        }
        for i, sample in enumerate(samples)
    ]
    return {
        "batch": batch,
        "samples": table,
        "tokens": int(batch.attention_mask.sum()),
        "padding_ratio": 1 - float(batch.attention_mask.float().mean()),
        "sources": dict(Counter(row["source"] for row in table)),
        "text": text,
    }


def _formats(config: RunConfig):
    try:
        if config.objective != "flamingo":
            return tower_text(config), tower_image(config)
        vision = plan_vision(config.model.vision.path, config.model.vision.architecture)
        return flamingo_text(config), flamingo_image(config, vision)
    except (ImportError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        rule = f"tokenizer and image size of the towers can be read: {error}"
        raise ConfigError([Problem("model", "-", rule, "correct the path it names")]) from None


def format_table(shown: dict) -> str:
    """The samples as a table of plain text, and the batch in one line."""
    table = Table()
    columns = ("position", "source", "epoch", "key", "images", "tokens", "targets", "text")
    for name in columns:
        numeric = name in ("position", "epoch", "images", "tokens", "targets")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in shown["samples"]:
        text = row["text"].replace("\n", " ")
        cut = text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."
        table.add_row(*(str(row[name]) for name in columns[:-1]), cut)
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(table, markup=False)
    return f"{console.file.getvalue().rstrip()}\n{_summary(shown)}"


def _summary(shown: dict) -> str:
    batch, shares = shown["batch"], ", ".join(f"{n} {c}" for n, c in shown["sources"].items())
    rows, width = batch.input_ids.shape
    line = (
        f"{len(shown['samples'])} samples ({shares}) in {rows} rows of {width} tokens, "
        f"{100 * shown['padding_ratio']:.1f}% padding"
    )
    told = "".join(f"\nposition {r.position}: {r.key} replaced, {r.reason}" for r in batch.replaced)
    return line + told


def write_batch_page(shown: dict, title: str, path: Path) -> None:
    """Write a self-contained page: every row with its tokens, targets and images where they stand."""
    batch, text = shown["batch"], shown["text"]
    key = (
        "<p>Tokens on green are predicted, tokens on grey are not; a blue bar begins a sample of the "
        "row. Images are shown as the encoder gets them.</p>"
    )
    rows = [_row(batch, text, row) for row in range(len(batch.input_ids))]
    samples = "".join(
        f"<tr><td class=number>{row['position']}<td>{html.escape(row['source'])}"
        f"<td class=number>{row['epoch']}<td><code>{html.escape(row['key'])}</code>"
        f"<td>{html.escape(row['text'])}"
        for row in shown["samples"]
    )
    head = "<tr><th>position<th>source<th>epoch<th>key<th>text"
    parts = [STYLE, f"<p>{html.escape(_summary(shown))}</p>", key, *rows, "<h2>Samples</h2>"]
    write_page(path, title, [*parts, f"<table>{head}{samples}</table>"])


def _row(batch: Batch, text, row: int) -> str:
    documents = (
        batch.attention_mask[row].long() - 1 if batch.documents is None else batch.documents[row]
    )
    image_id = None if text.token_ids is None else text.token_ids.media["image"]
    cells, slot, last = [], 0, None
    tokens = text.tokenizer.convert_ids_to_tokens(batch.input_ids[row].tolist())
    for i, token in enumerate(tokens):
        document = int(documents[i])
        if document < 0:
            cells.append(f"<span class=padding>{len(tokens) - i} of padding</span>")
            break
        if document != last:
            cells.append("<span class=document></span>")
            last = document
        kind = "plain" if int(batch.labels[row, i]) == IGNORE else "target"
        cells.append(f"<span class='token {kind}'>{html.escape(_readable(token))}</span>")
        if image_id is not None and int(batch.input_ids[row, i]) == image_id:
            number = int(batch.media.slots[row, slot])
            slot += 1
            cells.append(_picture(batch.media.inputs["image"].data[number, 0].numpy()))
    if image_id is None:
        cells.append(_picture(batch.media.inputs["image"].data[row, 0].numpy()))
    return f"<div class=row>{''.join(cells)}</div>"


def _readable(token: str) -> str:
    """Byte-level tokenizers write a space as one letter, sentencepiece as another."""
    return token.replace("\u0120", " ").replace("\u2581", " ").replace("\u010a", "\\n")


def _picture(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img src='data:image/png;base64,{data}' alt=''>"
