"""When a loss has left its curve: a robust z-score over the last losses.

What others do. PaLM (arXiv:2204.02311, section 5.1) saw about twenty spikes, went back by hand some 100 steps
before each and skipped 200 to 500 batches; the same batches did no harm to other weights. OPT
(arXiv:2205.01068) and IDEFICS went back by hand too. Megatron-LM's check_for_spiky_loss takes ten times the
largest of the first 100 losses, which only a ruined model reaches. LLM Foundry's KillLossSpike takes twice
the mean of the last 100 losses, five times in a row, and ends the run. A factor of the loss says little: at
a loss of 2.5 that moves by 0.02 from step to step, 3.0 is a disaster and 1.2 times the mean.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.healing.config import HealingConfig

# Standard deviation of a normal distribution over its median absolute deviation.
MAD_TO_STD = 1.4826
# A loss that hardly moves is given this share of itself as its spread.
SPREAD_FLOOR = 0.01
# A drift is slow and may be the data's; it has to go further than a spike.
DRIFT_FACTOR = 2.0
TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class Spike:
    """A loss that left its curve.

    Attributes:
        kind: "spike", or "drift" where no loss stood out but they have risen slowly above the best.
        began: the step of the first outlier; of a drift, where the losses were best.
        step: at which it was noticed.
        loss: at that step.
        z: robust standard deviations above what was expected; of a drift, above the best.
    """

    kind: Literal["spike", "drift"]
    began: int
    step: int
    loss: float
    z: float


class SpikeDetector:
    """Judges each loss by the accepted ones before it.

    A loss is an outlier when it lies `spike_z` robust standard deviations above what its predecessors let
    expect. Outliers are not accepted, so that a spike does not become the rule. A few in a row are bad
    batches and left alone; `spike_steps` in a row are a spike. The losses of a falling curve are carried to
    the present along its slope first, since the fall would hide a spike otherwise; and since a curve may
    end its fall at any step, no less is expected than the median of its last quarter.

    Nothing is judged before half the window is full. O(window) a step, some 20 us.

    Args:
        config: section `healing`.
    """

    def __init__(self, config: HealingConfig) -> None:
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Forget all losses; for a run whose losses are about to be others, with other data say."""
        self._losses: deque[float] = deque(maxlen=self._config.spike_window)
        # First step of the outliers in a row, and how many they are.
        self._streak = (0, 0)
        # Step, level and spread where the losses were best.
        self._best: tuple[int, float, float] | None = None

    def observe(self, step: int, loss: float) -> Spike | None:
        """Judge the loss of a step; all ranks that are given the same numbers say the same.

        Args:
            step: number of the step; the weights have seen the batches of the steps before it.
            loss: mean over the global batch, without what was skipped.

        Returns:
            The spike, at every step from the one where it is certain until `load` or `reset`.

        Raises:
            ValueError: the loss is not finite; such steps are skipped and have no place here.
        """
        if not math.isfinite(loss):
            raise ValueError(f"the loss of step {step} is {loss}; only finite losses are judged")
        if not self._config.spike_z:
            return None
        if len(self._losses) < self._config.spike_window // 2:
            self._losses.append(loss)
            return None
        expected, spread = self._expect()
        z = (loss - expected) / spread
        if z > self._config.spike_z:
            began, count = self._streak
            began, count = (began, count + 1) if count else (step, 1)
            self._streak = (began, count)
            enough = count >= self._config.spike_steps
            return Spike("spike", began, step, loss, z) if enough else None
        self._streak = (0, 0)
        self._losses.append(loss)
        if self._best is None or expected < self._best[1]:
            self._best = (step, expected, spread)
        best_step, best, best_spread = self._best
        risen = (expected - best) / best_spread
        if risen > DRIFT_FACTOR * self._config.spike_z:
            return Spike("drift", best_step, step, loss, risen)
        return None

    def state(self) -> dict:
        """What a checkpoint keeps: JSON, some 20 bytes a loss, exact."""
        return {"losses": list(self._losses), "streak": self._streak, "best": self._best}

    def load(self, state: dict) -> None:
        """Go on from what `state` gave, under another window too."""
        self.reset()
        self._losses.extend(state["losses"])
        self._streak = tuple(state["streak"])
        self._best = None if state["best"] is None else tuple(state["best"])

    def _expect(self) -> tuple[float, float]:
        """The loss to be expected now and its robust standard deviation."""
        losses = np.fromiter(self._losses, float, len(self._losses))
        half = len(losses) // 2
        fall = min(0.0, (median(losses[half:]) - median(losses[:half])) / half)
        carried = losses - fall * np.arange(-len(losses), 0)
        middle = median(carried)
        spread = MAD_TO_STD * median(np.abs(carried - middle))
        expected = max(middle, median(losses[-(half // 2) :]))
        # The last for a loss of nothing at all.
        return expected, max(spread, SPREAD_FLOOR * abs(expected), TINY)


def median(values: np.ndarray) -> float:
    """As numpy's, four times as fast on the hundred values that there are here."""
    half = len(values) // 2
    if len(values) % 2:
        return float(np.partition(values, half)[half])
    low, high = np.partition(values, (half - 1, half))[half - 1 : half + 1].tolist()
    return (low + high) / 2
