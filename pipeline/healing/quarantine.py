"""Which samples were in the batches that were skipped, for a person to look at.

    {root}/{name}/quarantine/rank_00003.jsonl    {"step", "position", "key", "reason"}, one sample a line

A skip by itself takes nothing out of the data. Samples that turn up here again and again are left out by a
bitmap (docs/data.md).
"""

from collections import Counter
from pathlib import Path
from typing import Literal

from pipeline.data.batch import Batch
from pipeline.healing.journal import append_lines, read_lines

FOLDER = "quarantine"
Reason = Literal["loss", "gradient"]


class Quarantine:
    """Lists the suspects of one rank.

    Args:
        run_folder: gets quarantine/rank_NNNNN.jsonl with the first suspect.
        rank: of this process.
    """

    def __init__(self, run_folder: Path, rank: int) -> None:
        self._path = run_folder / FOLDER / f"rank_{rank:05d}.jsonl"

    def add(
        self, step: int, batches: list[Batch], were_finite: list[bool], *, any_loss_bad: bool
    ) -> int:
        """List the suspects of a skipped step.

        Where a loss was not finite, on whatever rank, only the micro-batches with such a loss are
        suspect. Where all losses were finite and a gradient was not, every one is: the gradients were
        summed before anyone looked.

        Args:
            step: that was skipped.
            batches: the micro-batches of this rank.
            were_finite: for each of them, whether its loss was.
            any_loss_bad: whether any rank had a loss that was not finite.

        Returns:
            How many samples were listed.
        """
        reason: Reason = "loss" if any_loss_bad else "gradient"
        rows = [
            {"step": step, "position": position, "key": key, "reason": reason}
            for batch, finite in zip(batches, were_finite, strict=True)
            if not (any_loss_bad and finite)
            for position, key in zip(batch.positions, batch.keys, strict=True)
        ]
        if rows:
            append_lines(self._path, rows)
        return len(rows)


def read_quarantine(run_folder: Path) -> list[dict]:
    """The suspects of all ranks in the order of the data; a sample listed twice at a step stands once."""
    rows = {}
    for path in sorted((run_folder / FOLDER).glob("rank_*.jsonl")):
        rows |= {(row["step"], row["position"]): row for row in read_lines(path)}
    return [rows[place] for place in sorted(rows)]


def summarise_quarantine(run_folder: Path, most: int = 20) -> dict:
    """What a command prints: how many suspects, and those that were suspect most often.

    Args:
        run_folder: of the run.
        most: samples listed, at most.

    Returns:
        ``steps``, ``samples`` (distinct keys), ``by_reason``, and ``suspects``: for each key how often
        by its own loss (``loss``) and how often along with the whole batch (``gradient``).
    """
    rows = read_quarantine(run_folder)
    counts: dict[str, Counter] = {}
    for row in rows:
        counts.setdefault(row["key"], Counter())[row["reason"]] += 1
    # A micro-batch is a narrower suspicion than a global batch.
    worst = sorted(counts, key=lambda key: (-counts[key]["loss"], -counts[key].total(), key))
    return {
        "steps": len({row["step"] for row in rows}),
        "samples": len(counts),
        "by_reason": dict(Counter(row["reason"] for row in rows)),
        "suspects": [
            {"key": key, "loss": counts[key]["loss"], "gradient": counts[key]["gradient"]}
            for key in worst[:most]
        ],
    }
