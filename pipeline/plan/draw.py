"""A drawing of a run plan as SVG text: for each strategy the parts of its memory, against the GPU's."""

from xml.sax.saxutils import escape, quoteattr

from pipeline.plan.gpus import GIB
from pipeline.plan.run import RunPlan, StrategyPlan

LEFT, TOP, BAR, GAP = 150, 110, 34, 26
SCALE, LEGEND = 620, 260  # widths
# Keys of `StrategyPlan.parts`, name, colour; frozen is blue and trained orange as in `model.draw`.
PARTS = (
    (("frozen",), "frozen weights", "#9dbbd9"),
    (("weights", "whole"), "trained weights", "#f0b878"),
    (("gradients", "buckets"), "gradients, on their way too", "#d98a6a"),
    (("master",), "fp32 masters", "#c47a2c"),
    (("moments_8bit", "moments_32bit"), "moments", "#8a5a2a"),
    (("gathered",), "weights gathered", "#7fb3b0"),
    (("activations",), "activations", "#8fb573"),
    (("working",), "logits, one layer", "#c9dca8"),
    (("update",), "copies of an update", "#b9a3cf"),
    (("reserve",), "context, fragmentation", "#c9ced3"),
)
BACKWARD = ("gradients", "buckets", "gathered", "activations", "working")
STYLE = """
text { font-family: Helvetica, Arial, sans-serif; font-size: 13px; fill: #22303c; }
.title { font-size: 20px; font-weight: bold; } .small { font-size: 12px; fill: #5a6875; }
.right { text-anchor: end; } .middle { text-anchor: middle; } .bold { font-weight: bold; }
.limit { stroke: #b3261e; stroke-width: 2; stroke-dasharray: 6 4; } .over { fill: #b3261e; }
.grid { stroke: #dfe4e8; stroke-width: 1; }
"""


def draw_run(run: RunPlan, title: str) -> str:
    """Draw the fuller of the two moments (backward pass, update) of every strategy.

    Returns:
        A whole SVG file. Boxes carry ``data-name``: strategy and part.
    """
    limit = run.gpu.memory_bytes
    # What is far beyond the GPU is cut: how much fits is the question.
    most = min(4 * limit, max(limit, *(plan.total for plan in run.strategies))) * 1.08
    bottom = TOP + len(run.strategies) * (BAR + GAP)
    height = max(bottom + 50, TOP + 24 * len(PARTS) + 30)
    shapes = [
        f'<text class="title" x="24" y="42">{escape(title)}</text>',
        f'<text class="small" x="24" y="66">{escape(_subtitle(run))}</text>',
    ]
    step = next(size for size in (1, 2, 5, 10, 20, 50, 100) if most / GIB / size <= 10)
    for tick in range(0, int(most / GIB) + 1, step):
        x = LEFT + SCALE * tick * GIB / most
        shapes.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        shapes.append(f'<text class="small middle" x="{x:.1f}" y="{bottom + 18}">{tick}</text>')
    shapes.append(f'<text class="small" x="{LEFT + SCALE + 8}" y="{bottom + 18}">GiB</text>')
    for index, plan in enumerate(run.strategies):
        shapes += _bar(run, plan, TOP + GAP / 2 + index * (BAR + GAP), most)
    x = LEFT + SCALE * limit / most
    shapes.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}"/>')
    shapes.append(
        f'<text class="over middle" x="{x:.1f}" y="{TOP - 14}">'
        f"{escape(run.gpu.name)}: {limit / GIB:.1f} GiB</text>"
    )
    shapes += _legend(LEFT + SCALE + 60)
    width = LEFT + SCALE + 60 + LEGEND
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">\n<title>{escape(title)}</title>\n'
        f'<style>{STYLE}</style>\n<rect width="{width}" height="{height}" fill="#fbfcfd"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def _subtitle(run: RunPlan) -> str:
    batch = run.config.batch
    return (
        f"memory on each of {run.trained.world_size} GPUs, {run.trained.precision}, "
        f"{run.trained.optimizer}, micro_size {batch.micro_size}; * is engine.strategy"
    )


def _bar(run: RunPlan, plan: StrategyPlan, y: float, most: float) -> list[str]:
    name = plan.strategy.name
    mark = " *" if plan is run.chosen else ""
    shapes = [
        f'<text class="right bold" x="{LEFT - 12}" y="{y + 22:g}">{escape(name + mark)}</text>'
    ]
    # The update is drawn only where it is the fuller moment, in place of what is gone by then.
    passing = sum(plan.parts[key] for key in BACKWARD[1:])
    absent = BACKWARD[1:] if plan.parts["update"] > passing else ("update",)
    x, end = float(LEFT), LEFT + SCALE
    for keys, part, color in PARTS:
        size = sum(plan.parts[key] for key in keys if key not in absent)
        width = min(SCALE * size / most, end - x)
        if width <= 0:
            continue
        label = quoteattr(f"{name}: {part}")
        shapes.append(
            f'<rect data-name={label} x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{BAR}" '
            f'fill="{color}"><title>{escape(part)}: {size / GIB:.2f} GiB</title></rect>'
        )
        x += width
    kind = "" if plan.fits else ' class="over"'
    shapes.append(f'<text{kind} x="{x + 8:.1f}" y="{y + 22:g}">{plan.total / GIB:.1f}</text>')
    return shapes


def _legend(x: float) -> list[str]:
    shapes = []
    for index, (_, part, color) in enumerate(PARTS):
        y = TOP + 24 * index
        shapes.append(f'<rect x="{x:g}" y="{y}" width="16" height="16" fill="{color}"/>')
        shapes.append(f'<text x="{x + 24:g}" y="{y + 13}">{escape(part)}</text>')
    return shapes
