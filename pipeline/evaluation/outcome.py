"""What a suite comes to: figures with intervals, rows, notes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.evaluation.metrics.bootstrap import interval, paired_interval
from pipeline.evaluation.metrics.score import Score
from pipeline.evaluation.results import Figure, Row


@dataclass
class Outcome:
    """Filled by a suite.

    Attributes:
        figures: in the order of the page.
        rows: one for each sample.
        notes: to be read with the figures.
        wrong_by, hard_by: see `pipeline.evaluation.results.Results`.
        resamples: of the intervals.
        groups: samples that are drawn together; None: each by itself.
    """

    resamples: int = 1000
    groups: Sequence[str] | None = None
    figures: list[Figure] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong_by: str = ""
    hard_by: str = ""

    def add(self, name: str, score: Score, condition: str = "", **more: object) -> None:
        """A figure with its interval; of every sample its own."""
        found = interval(score, groups=self._groups(score), resamples=self.resamples)
        figure = Figure.of(name, found, len(score), condition, **more)
        self.figures.append(figure)
        if len(score) == len(self.rows):
            for row, value in zip(self.rows, score.per_sample.tolist(), strict=True):
                row.scores[figure.key] = value if np.isfinite(value) else None

    def compare(
        self, name: str, score: Score, other: Score, condition: str, **more: object
    ) -> None:
        """By how much a figure is higher than under a condition, of the same samples."""
        groups = self._groups(score)
        found = paired_interval(score, other, groups=groups, resamples=self.resamples)
        self.figures.append(Figure.of(name, found, len(score), f"minus_{condition}", **more))

    def _groups(self, score: Score) -> Sequence[str] | None:
        fits = self.groups is not None and len(self.groups) == len(score)
        return self.groups if fits else None


def rows_of(records: Sequence, said: dict[str, list[str]] | None = None) -> list[Row]:
    """A row for each record, with what was said under each condition."""
    return [
        Row(
            key=record.key,
            image=record.image.name,
            question=record.question,
            truth=list(record.texts),
            said={condition: texts[n] for condition, texts in (said or {}).items()},
        )
        for n, record in enumerate(records)
    ]
