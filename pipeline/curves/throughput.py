"""How fast a run goes: since the last point of the curves, and since this start."""

import time
from dataclasses import dataclass, field

import psutil
import torch

from pipeline.curves.mfu import ModelFlops


@dataclass
class Counted:
    """What went through, over all ranks, and how long it took on this one."""

    samples: int = 0
    tokens: float = 0.0
    images: float = 0.0
    waited: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def add(self, *, samples: int, tokens: float, images: float, waited: float) -> None:
        self.samples += samples
        self.tokens += tokens
        self.images += images
        self.waited += waited

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


class Throughput:
    """Counts steps.

    Args:
        flops: of the model, None where the MFU is not wanted.
        peak: FLOPs a second of all devices together, None where it is not known.
    """

    def __init__(self, flops: ModelFlops | None = None, peak: float | None = None) -> None:
        self._flops, self._peak = flops, peak
        self._whole, self._window = Counted(), Counted()

    def add(self, *, samples: int, tokens: float, images: float, waited: float) -> None:
        """One step.

        Args:
            samples: of the global batch.
            tokens: of text in it, padding excluded.
            images: in it.
            waited: seconds that this rank waited for data.
        """
        for counted in (self._whole, self._window):
            counted.add(samples=samples, tokens=tokens, images=images, waited=waited)

    def since_start(self) -> dict[str, float]:
        """Means since this start, for the summary."""
        whole = self._whole
        return {
            "samples_per_second": whole.samples / whole.seconds,
            "tokens_per_second": whole.tokens / whole.seconds,
            "step_wait_ratio": whole.waited / whole.seconds,
        }

    def point(self) -> dict[str, float]:
        """Means since the last point; a new window begins. Also the memory of this rank, in GB."""
        window, self._window = self._window, Counted()
        seconds = window.seconds
        figures = {
            "samples_per_second": window.samples / seconds,
            "tokens_per_second": window.tokens / seconds,
            "step_wait_ratio": window.waited / seconds,
        }
        if self._flops and self._peak:
            done = self._flops.of(window.tokens, window.images)
            figures["mfu"] = done / (seconds * self._peak)
        return figures | memory()


def memory() -> dict[str, float]:
    """GB (10^9 bytes) that this process holds, and on its GPU the most that tensors took so far."""
    figures = {"memory/process_gb": psutil.Process().memory_info().rss / 1e9}
    if torch.cuda.is_available():
        figures["memory/gpu_peak_allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
        figures["memory/gpu_reserved_gb"] = torch.cuda.memory_reserved() / 1e9
    return figures
