"""Pictures in a grid, each over its true caption and what the model says, with the image and without."""

import io
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

from pipeline.evaluation.layouts.record import Record

TILE = 224
LINES = 3  # of each text, at most
_LABELS = {"": "image", "zero_image": "blind"}


def contact_sheet(records: Sequence[Record], said: dict[str, list[str]], count: int) -> Image.Image:
    """The sheet; its pictures are spread evenly over the records.

    Args:
        records: at least one.
        said: texts by condition, see `pipeline.evaluation.results.Row`.
        count: pictures, at most.
    """
    count = max(1, min(count, len(records)))
    columns = min(4, count)
    height = TILE + 16 + 14 * LINES * (1 + len(said))
    sheet = Image.new("RGB", (columns * (TILE + 16), -(-count // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for place in range(count):
        number = place * len(records) // count
        x, y = place % columns * (TILE + 16) + 8, place // columns * height
        picture = Image.open(io.BytesIO(records[number].image.open())).convert("RGB")
        scale = TILE / max(picture.size)
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
        sheet.paste(picture, (x, y + 4))
        texts = [("true", records[number].texts[0])]
        texts += [(_LABELS.get(c, c), answers[number]) for c, answers in said.items()]
        lines = [
            line for label, text in texts for line in textwrap.wrap(f"{label}: {text}", 38)[:LINES]
        ]
        pen.multiline_text((x, y + TILE + 8), "\n".join(lines), fill="black")
    return sheet
