"""A drawing of a model as SVG text: towers, resampler, latents, and the gated blocks in their places.

Written by hand, without a library. Coordinates are pixels, y grows downwards; the data flows upwards.
"""

from xml.sax.saxutils import escape, quoteattr

from model.plan import (
    CONTRASTIVE,
    LANGUAGE,
    NEW_TOKENS,
    BlockPlan,
    MediaPlan,
    ModelPlan,
    PartPlan,
    resampler_part,
    tower_part,
)

MAX_BLOCKS = 8  # more are drawn as the first and last three
ENDS = 3
ROW, GAP = 38, 14
COLUMN, STACK, PANEL = 280, 400, 320  # widths
MARGIN, BETWEEN, TOP = 40, 110, 100
MAX_SQUARES = 8

STYLE = """
text { font-family: Helvetica, Arial, sans-serif; font-size: 13px; fill: #22303c; }
.title { font-size: 20px; font-weight: bold; } .small { font-size: 12px; fill: #5a6875; }
.middle { text-anchor: middle; } .right { text-anchor: end; } .bold { font-weight: bold; }
rect { stroke-width: 1.5; rx: 5px; }
.frozen { fill: #dce8f4; stroke: #5d81a8; } .trained { fill: #fce3c6; stroke: #c47a2c; }
.data { fill: #ffffff; stroke: #9aa5af; stroke-dasharray: 4 3; }
.expert { fill: #fffaf3; stroke: #c47a2c; rx: 1px; stroke-width: 1; }
.chosen { fill: #c47a2c; stroke: #c47a2c; rx: 1px; stroke-width: 1; }
.flow { fill: none; stroke: #5a6875; stroke-width: 1.5; }
.media { fill: none; stroke: #c47a2c; stroke-width: 1.5; }
"""
ARROWS = "".join(
    f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{color}"/></marker>'
    for name, color in (("flow", "#5a6875"), ("media", "#c47a2c"))
)


class Canvas:
    """Collects shapes."""

    def __init__(self) -> None:
        self.shapes: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, name: str = ""
    ) -> None:
        """A rectangle of the class ``kind``; ``name`` marks what it stands for."""
        mark = f" data-name={quoteattr(name)}" if name else ""
        self.shapes.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{mark}/>'
        )

    def text(self, x: float, y: float, text: str, kind: str = "middle") -> None:
        """One line, its baseline at y."""
        self.shapes.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def lines(self, x: float, y: float, height: float, first: str, *others: str) -> None:
        """Lines centred in a box that begins at y, the first one bold."""
        start = y + height / 2 + 5 - 9 * len(others)
        self.text(x, start, first, "middle bold")
        for index, line in enumerate(others, 1):
            self.text(x, start + 18 * index, line, "middle small")

    def arrow(self, *points: tuple[float, float], kind: str = "flow", head: bool = True) -> None:
        """A line through points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = f' marker-end="url(#{kind})"' if head else ""
        self.shapes.append(f'<polyline class="{kind}" points="{path}"{end}/>')


def draw_model(plan: ModelPlan, title: str = "Flamingo") -> str:
    """Draw a model.

    Args:
        plan: of `model.plan.compute_plan`.
        title: above the drawing.

    Returns:
        A whole SVG file. Boxes carry ``data-name``: a part's name, or ``block N`` from 0.
    """
    rows = _stack_rows(plan)
    # Input, embedding, the stack, head, output; the column of a medium needs seven rows.
    num_rows = max(len(rows) + 4, 9)
    bottom = TOP + num_rows * (ROW + GAP)
    left = MARGIN + len(plan.media) * (COLUMN + BETWEEN)
    width = left + STACK + MARGIN + PANEL + MARGIN
    height = max(bottom, TOP + 34 * (len(plan.parts) + 10)) + MARGIN
    canvas = Canvas()
    canvas.text(MARGIN, 48, title, "title")
    canvas.text(MARGIN, 70, _subtitle(plan), "small")
    ends, contrastive_at = _draw_stack(canvas, plan, rows, left, bottom)
    bus = left - 0.45 * BETWEEN
    for index, media in enumerate(plan.media):
        x = MARGIN + index * (COLUMN + BETWEEN)
        latents = _draw_media(canvas, plan, media, x, bottom)
        canvas.arrow(
            (x + COLUMN, latents + ROW / 2), (bus, latents + ROW / 2), kind="media", head=False
        )
        if CONTRASTIVE in _names(plan) and index == 0:
            _draw_contrastive(canvas, plan, x, latents, left, contrastive_at)
        reach = [latents + ROW / 2, *ends]
        canvas.arrow((bus, max(reach)), (bus, min(reach)), kind="media", head=False)
    for y in ends:
        canvas.arrow((bus, y), (left, y), kind="media")
    _draw_panel(canvas, plan, left + STACK + MARGIN)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n<defs>{ARROWS}</defs>\n"
        f'<rect x="0" y="0" width="{width:g}" height="{height:g}" fill="#fbfcfd"/>\n'
        + "\n".join(canvas.shapes)
        + "\n</svg>\n"
    )


def short_count(number: float) -> str:
    """A count in three digits: 950, 12.3 K, 88.2 M, 70.6 B, 1.2 T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _names(plan: ModelPlan) -> list[str]:
    return [part.name for part in plan.parts]


def _subtitle(plan: ModelPlan) -> str:
    total = plan.total
    return (
        f"{short_count(total.trainable + total.frozen)} parameters, "
        f"{short_count(total.trainable)} of them trained; the data flows upwards"
    )


def _stack_rows(plan: ModelPlan) -> list[tuple[str, object]]:
    """What stands above the embedding, from the bottom up: layers, block or rest."""
    blocks = plan.blocks
    ends = [block.layer for block in blocks[1:]] + [int(plan.language["layers"])]
    rows: list[tuple[str, object]] = []
    if blocks[0].layer:
        rows.append(("layers", (0, blocks[0].layer)))
    shown = range(len(blocks))
    left_out = range(ENDS, len(blocks) - ENDS) if len(blocks) > MAX_BLOCKS else range(0)
    for index in shown:
        if index in left_out:
            if index == left_out[0]:
                layers = ends[left_out[-1]] - blocks[index].layer
                rows.append(("rest", (len(left_out), layers)))
            continue
        rows.append(("block", index))
        rows.append(("layers", (blocks[index].layer, ends[index])))
    return rows


def _draw_stack(
    canvas: Canvas, plan: ModelPlan, rows: list, left: float, bottom: float
) -> tuple[list[float], float]:
    """Draw the language model; returns the heights of the blocks' arrows and of the last output."""
    middle = left + STACK / 2
    sizes, new = plan.language, plan.part(NEW_TOKENS)
    kind = "trained" if new.trainable else "frozen"
    y = bottom - ROW
    canvas.box(left, y, STACK, ROW, "data")
    canvas.text(middle, y + 24, "text tokens, with a mark where a medium stands")
    y = _up(canvas, middle, y)
    share = STACK * 0.62
    canvas.box(left, y, share - 6, ROW, "frozen")
    vocabulary = f"{int(sizes['vocabulary']):,}"
    canvas.text(left + share / 2, y + 24, f"embedding of {vocabulary} tokens")
    canvas.box(left + share, y, STACK - share, ROW, kind, NEW_TOKENS)
    canvas.text(left + share + (STACK - share) / 2, y + 24, "new tokens")
    arrows = []
    for what, value in rows:
        y = _up(canvas, middle, y)
        if what == "layers":
            first, end = value
            canvas.box(left, y, STACK, ROW, "frozen")
            name = f"layer {first}" if end == first + 1 else f"layers {first} to {end - 1}"
            canvas.text(middle, y + 24, name)
        elif what == "rest":
            blocks, layers = value
            canvas.box(left, y, STACK, ROW, "data")
            canvas.text(middle, y + 24, f"{blocks} more blocks and {layers} layers in the same way")
            arrows.append(y + ROW / 2)
        else:
            _draw_block(canvas, value, plan.blocks[value], left, y)
            arrows.append(y + ROW / 2)
    last = y
    y = _up(canvas, middle, y)
    canvas.box(left, y, STACK, ROW, "frozen", LANGUAGE)
    canvas.text(middle, y + 24, f"head of {sizes['model']}, and of the new tokens")
    y = _up(canvas, middle, y)
    canvas.box(left, y, STACK, ROW, "data")
    canvas.text(middle, y + 24, "next token")
    return arrows, last - GAP / 2


def _up(canvas: Canvas, x: float, y: float) -> float:
    """An arrow to the row above; returns its y."""
    canvas.arrow((x, y), (x, y - GAP))
    return y - ROW - GAP


def _draw_block(canvas: Canvas, index: int, block: BlockPlan, left: float, y: float) -> None:
    canvas.box(left, y, STACK, ROW, "trained block", f"block {index}")
    what = "feed-forward"
    if block.num_experts > 1:
        what = f"{block.num_experts} experts, top {block.top_k}"
        what += ", 1 shared" if block.shared_expert else ""
    canvas.text(left + 14, y + 24, f"gated block {index}: cross-attention, {what}", "")
    if 1 < block.num_experts <= MAX_SQUARES and not block.shared_expert:
        start = left + STACK - 12 * block.num_experts - 10
        for expert in range(block.num_experts):
            kind = "chosen" if expert < block.top_k else "expert"
            canvas.box(start + 12 * expert, y + ROW / 2 - 4.5, 9, 9, kind)


def _draw_media(
    canvas: Canvas, plan: ModelPlan, media: MediaPlan, x: float, bottom: float
) -> float:
    """Draw one column; returns the y of its latents."""
    middle, tall = x + COLUMN / 2, 2 * ROW + GAP
    names = tower_part(media.kind), resampler_part(media.kind)
    tower, resampler = (plan.part(name) for name in names)
    shape = " x ".join(str(size) for size in media.input_shape)
    y = bottom - ROW
    canvas.box(x, y, COLUMN, ROW, "data")
    canvas.text(middle, y + 24, f"{media.kind}: {shape}")
    texts = (
        (names[0], media.tower, f"{media.num_patches} patches of width {media.width}", tower),
        (
            names[1],
            f"{media.depth} layers",
            f"any number of patches to {media.num_latents}",
            resampler,
        ),
    )
    for name, first, second, part in texts:
        canvas.arrow((middle, y), (middle, y - GAP))
        y -= tall + GAP
        canvas.box(x, y, COLUMN, tall, "trained" if part.trainable else "frozen", name)
        canvas.lines(middle, y, tall, name, f"{first}, {_count(part)} parameters", second)
    y = _up(canvas, middle, y)
    canvas.box(x, y, COLUMN, ROW, "data")
    canvas.text(middle, y + 24, f"{media.num_latents} latents of width {media.latent_width}")
    return y


def _draw_contrastive(
    canvas: Canvas, plan: ModelPlan, x: float, latents: float, left: float, y: float
) -> None:
    """Draw the head that compares latents and text at the height of the last hidden states."""
    top = min(y - ROW / 2, latents - ROW - GAP)
    canvas.box(x, top, COLUMN, ROW, "trained", CONTRASTIVE)
    canvas.text(x + COLUMN / 2, top + 24, f"{CONTRASTIVE}, {_count(plan.part(CONTRASTIVE))}")
    canvas.arrow((x + COLUMN / 2, latents), (x + COLUMN / 2, top + ROW))
    canvas.arrow((left + STACK / 2, y), (x + COLUMN, y))


def _draw_panel(canvas: Canvas, plan: ModelPlan, x: float) -> None:
    """Draw the parts with their parameters, and the legend."""
    y = TOP
    canvas.text(x, y, "parameters", "bold")
    for part in [*plan.parts, plan.total]:
        y += 30
        if part.name != "total":
            canvas.box(x, y - 12, 16, 14, "trained" if part.trainable else "frozen")
        canvas.text(x + 26, y, part.name, "" if part.name != "total" else "bold")
        canvas.text(x + PANEL, y, _count(part), "right")
    sizes = plan.language
    notes = [
        f"{sizes['model']}:",
        f"{sizes['layers']} layers of width {int(sizes['width']):,}",
        f"{len(plan.blocks)} gated blocks, each before its layer",
    ]
    y += 14
    for note in notes:
        y += 22
        canvas.text(x, y, note, "small")
    y += 30
    for kind, meaning in (
        ("frozen", "frozen"),
        ("trained", "trained; tanh gates in the blocks"),
        ("data", "data"),
    ):
        y += 26
        canvas.box(x, y - 12, 16, 14, kind)
        canvas.text(x + 26, y, meaning, "")
    if any(block.num_experts > 1 for block in plan.blocks):
        y += 26
        canvas.box(x, y - 10, 9, 9, "chosen")
        canvas.box(x + 12, y - 10, 9, 9, "expert")
        canvas.text(x + 30, y, "experts that a token takes, and the others", "")


def _count(part: PartPlan) -> str:
    return short_count(part.trainable + part.frozen)
