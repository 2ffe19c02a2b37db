"""Which samples stay: every one that breaks a rule is left out by the first that it breaks."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from data_prep.curate.config import CurateConfig, Range
from data_prep.curate.datasets import Samples
from data_prep.curate.duplicates import repeated, similar_to_earlier
from data_prep.errors import ConfigError, Problem

MOST_PAIRS = 24  # that are shown
BITMAPS, UNREADABLE, APART, SIMILAR, TEXT = (
    "bitmaps",
    "unreadable",
    "apart_from",
    "similar_images",
    "same_text",
)


@dataclass
class Decision:
    """What became of the samples.

    Attributes:
        rules: names of the rules in their order, as the configuration has them.
        broken: place of the rule that a sample breaks first, -1 where it stays; int8 of each.
        pairs: rule to some of (left out, because of) that it found, by number.
    """

    rules: list[str]
    broken: np.ndarray
    pairs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def kept(self) -> np.ndarray:
        """Bool of each sample."""
        return self.broken < 0

    def num_kept(self, span: slice) -> int:
        """Samples that stay."""
        return int((self.broken[span] < 0).sum())

    def counts(self, span: slice) -> Counter:
        """Samples left out by rule, in the order of the rules, those without any left away."""
        counts = np.bincount(self.broken[span] + 1, minlength=len(self.rules) + 1)[1:]
        return Counter({r: int(n) for r, n in zip(self.rules, counts, strict=True) if n})

    def leave_out(self, rule: str, which: np.ndarray) -> None:
        """By a rule, what none before has left out."""
        if rule not in self.rules:
            self.rules.append(rule)
        self.broken[which & self.kept] = self.rules.index(rule)


def decide(samples: Samples, config: CurateConfig) -> Decision:
    """Hold all samples against all rules; those to stay apart from are never left out.

    Raises:
        ConfigError: no sample of a source has a number in a column, or none stays.
    """
    decision = Decision([], np.full(len(samples), -1, np.int8))
    own = np.arange(len(samples)) >= samples.num_apart
    selected = _selected(samples)
    decision.leave_out(BITMAPS, own & ~selected)
    decision.leave_out(UNREADABLE, own & ~samples.field("readable"))
    for name in ("width", "height"):
        if _has_end(getattr(config, name)):
            values = samples.index_field(name)
            decision.leave_out(name, own & _outside(getattr(config, name), values))
    if _has_end(config.characters):
        values = samples.field("characters")
        decision.leave_out("characters", own & _outside(config.characters, values))
    for name, wanted in config.columns.items():
        values = samples.column(name)
        _check_column(samples, name, values)
        decision.leave_out(f"columns.{name}", own & _outside(wanted, values))
    if config.similar_images or samples.num_apart:
        shown = decision.kept & selected & samples.field("has_image")
        _leave_out_similar(decision, samples, config, np.flatnonzero(shown))
    if config.same_text is not None:
        left = np.flatnonzero(decision.kept & own)
        which = np.zeros(len(samples), bool)
        which[left[repeated(samples.field("text")[left], config.same_text)]] = True
        decision.leave_out(TEXT, which)
    _check_something_stays(samples, decision)
    return decision


def _selected(samples: Samples) -> np.ndarray:
    """What the other selections of the sources keep, bool."""
    found = np.ones(len(samples), bool)
    for number, bitmap in enumerate(samples.selected):
        if bitmap is None:
            continue
        found[samples.span(number)] = False
        for shard, span in enumerate(samples.shard_spans(number)):
            found[span.start + bitmap.kept(shard)] = True
    return found


def _leave_out_similar(
    decision: Decision, samples: Samples, config: CurateConfig, numbers: np.ndarray
) -> None:
    """Numbers are those of the samples that are still there and have an image, ascending."""
    fixed = int(np.searchsorted(numbers, samples.num_apart))
    similar = similar_to_earlier(
        samples.field("image")[numbers],
        samples.field("look")[numbers],
        lambda some: samples.miniatures(numbers[some]),
        hash_distance=config.hash_distance,
        miniature_distance=config.miniature_distance,
        fixed=fixed,
        among_rest=config.similar_images,
    )
    for rule, which in (
        (APART, (similar >= 0) & (similar < fixed)),
        (SIMILAR, similar >= fixed),
    ):
        left_out = np.zeros(len(samples), bool)
        left_out[numbers[which]] = True
        decision.leave_out(rule, left_out)
        some = np.flatnonzero(which)[:MOST_PAIRS]
        decision.pairs[rule] = [(int(numbers[n]), int(numbers[similar[n]])) for n in some]


def _has_end(wanted: Range) -> bool:
    return wanted.min is not None or wanted.max is not None


def _outside(wanted: Range, values: np.ndarray) -> np.ndarray:
    """NaN is outside of every range."""
    low = -np.inf if wanted.min is None else wanted.min
    high = np.inf if wanted.max is None else wanted.max
    return ~((values >= low) & (values <= high))


def _check_column(samples: Samples, name: str, values: np.ndarray) -> None:
    lack = [
        source.name
        for number, source in samples.to_choose_from()
        if len(part := values[samples.span(number)]) and np.isnan(part).all()
    ]
    if lack:
        rule = f"names numbers of the ledger or of the samples' JSON; {', '.join(lack)} has none"
        remedy = "correct the name, or ingest again with ingest.sources.NAME.keep_columns"
        raise ConfigError([Problem(f"curate.columns.{name}", name, rule, remedy)])


def _check_something_stays(samples: Samples, decision: Decision) -> None:
    problems = []
    for number, source in samples.to_choose_from():
        span = samples.span(number)
        if decision.num_kept(span):
            continue
        counts = decision.counts(span)
        told = ", ".join(f"{rule} {count}" for rule, count in counts.items()) or "it is empty"
        rule = f"keeps at least one of the {span.stop - span.start} samples (left out: {told})"
        remedy = "loosen the rule that leaves out the most, or take the source away"
        problems.append(Problem(source.key, source.url, rule, remedy))
    if problems:
        raise ConfigError(problems)
