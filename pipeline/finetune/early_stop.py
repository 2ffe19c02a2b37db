"""Ends a training whose held-out figure has stopped getting better."""

from pipeline.finetune.config import EarlyStopConfig


class EarlyStop:
    """Judges one figure, measurement by measurement; alike on all ranks, which see the same numbers.

    Args:
        config: None never stops.

    Attributes:
        best: figure so far, None before the first.
        best_step: step of it.
        stopped: whether the training is over.
    """

    def __init__(self, config: EarlyStopConfig | None) -> None:
        self._config = config
        self.best: float | None = None
        self.best_step: int | None = None
        self.stopped = False
        self._since = 0

    def observe(self, step: int, figures: dict[str, float]) -> None:
        """Look at a step's figures; one without the metric changes nothing."""
        config = self._config
        if config is None or figures.get(config.metric) is None:
            return
        value = figures[config.metric]
        sign = 1 if config.mode == "min" else -1
        if self.best is None or sign * value < sign * self.best - config.min_delta:
            self.best, self.best_step, self._since = value, step, 0
            return
        self._since += 1
        self.stopped = self._since >= config.patience

    def score(self, figures: dict[str, float]) -> float | None:
        """What the best checkpoint is chosen by, less is better; None where there is no such figure."""
        if self._config is None:
            return figures.get("held_out_loss")
        value = figures.get(self._config.metric)
        return value if value is None or self._config.mode == "min" else -value

    def state(self) -> dict:
        """For the checkpoint."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "since": self._since,
            "stopped": self.stopped,
        }

    def load(self, state: dict | None) -> None:
        """Go on from a checkpoint."""
        if state is None:
            return
        self.best, self.best_step = state["best"], state["best_step"]
        self._since, self.stopped = state["since"], state["stopped"]
