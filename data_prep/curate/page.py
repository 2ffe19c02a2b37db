"""The page of a curation: what each rule left out, and the images that were taken for similar ones."""

import html
from pathlib import Path

from data_prep.curate.datasets import Samples
from data_prep.curate.decide import APART, SIMILAR, Decision
from data_prep.report import bars, figure, write_page

_TITLES = {
    SIMILAR: "Similar to an earlier sample",
    APART: "Similar to a sample to stay apart from",
}


def write_curation_page(path: Path, samples: Samples, decision: Decision) -> Path:
    """Write it, whole or not at all; its path.

    Raises:
        OSError: it cannot be written.
    """
    parts = []
    for number, source in samples.to_choose_from():
        span = samples.span(number)
        total, kept = span.stop - span.start, decision.num_kept(span)
        rows = [("stays", kept, "")]
        rows += [(rule, count, " lost") for rule, count in decision.counts(span).items()]
        parts += [
            f"<h2>{html.escape(source.name)}</h2>",
            f"<p><b>{kept:,}</b> of <b>{total:,}</b> samples stay "
            f"({100 * kept / max(1, total):.1f}%). <code>{html.escape(source.url)}</code></p>",
            bars(rows),
        ]
    for rule, title in _TITLES.items():
        pairs = decision.pairs.get(rule)
        if pairs:
            parts += [f"<h2>{title}</h2>", "<p>Left out, and beside it the one that stays.</p>"]
            shown = [[figure(*_shown(samples, number)) for number in pair] for pair in pairs]
            shown = [f"<div class=pair>{''.join(pair)}</div>" for pair in shown]
            parts.append(f"<div class='grid pairs'>{''.join(shown)}</div>")
    return write_page(path, "Curation", parts)


def _shown(samples: Samples, number: int) -> tuple[bytes, str]:
    try:
        name, parts = samples.read(number)
    except (OSError, ValueError) as error:
        return b"", f"cannot be read now: {error}"
    image = next(part for part in parts if isinstance(part, bytes))
    text = " ".join(part for part in parts if isinstance(part, str))
    return image, f"{name}: {text}"
