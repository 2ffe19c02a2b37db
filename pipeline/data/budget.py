"""How many samples may turn out unusable before a run stops."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from data_prep.errors import DataBudgetError
from pipeline.data.batch import Batch
from pipeline.data.config import BudgetConfig

log = logging.getLogger("roseate")

SAMPLES_BEFORE_PERCENT = 1000


def check_budget(config: BudgetConfig, *, replaced: int, consumed: int) -> None:
    """Stop when more than the allowed share of the samples so far could not be used.

    Args:
        config: section `data.budget`.
        replaced: samples of the run that could not be used, over all ranks.
        consumed: samples of the run.

    Raises:
        DataBudgetError: the share is spent. A run of fewer than `SAMPLES_BEFORE_PERCENT` samples is
            judged as if it had that many.
    """
    allowed = config.percent / 100 * max(consumed, SAMPLES_BEFORE_PERCENT)
    if replaced > allowed:
        raise DataBudgetError(
            f"{replaced} of {consumed} samples could not be used, more than data.budget.percent="
            f"{config.percent:g} allows; they are listed in the folder unusable/ of the run. Mend "
            "the dataset, leave them out by a bitmap, or raise data.budget.percent"
        )


class UnusableLog:
    """Lists the samples that were replaced, one JSON line each, where they are consumed.

    A run that goes on from a checkpoint lists again what it meets again.

    Args:
        run_folder: gets unusable/rank_NNNN.jsonl.
        rank: of this process.
    """

    def __init__(self, run_folder: Path, rank: int) -> None:
        self._path = run_folder / "unusable" / f"rank_{rank:04d}.jsonl"

    def add(self, batches: list[Batch]) -> None:
        """List what was replaced in these batches."""
        replaced = [r for batch in batches for r in batch.replaced]
        if not replaced:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            for replacement in replaced:
                file.write(json.dumps(asdict(replacement)) + "\n")
                log.warning("%s cannot be used: %s", replacement.key, replacement.reason)
