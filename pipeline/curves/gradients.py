"""How large the gradient of each part of the model is, looked at when the optimizer takes it up."""

import re

import torch
from torch import Tensor

from pipeline.engine.fragments import EngineView

# First match wins; names are those of the undivided model.
PARTS = (
    ("lora", re.compile(r".*lora_.*")),
    ("new_tokens", re.compile(r"new_tokens\..*")),
    ("resampler", re.compile(r"media_encoders\.\w+\.resampler\..*")),
    ("gates", re.compile(r"gated_blocks\.\d+\.(attn|ff)_gate")),
    ("cross_attention", re.compile(r"gated_blocks\.\d+\.attention\..*")),
    ("routers", re.compile(r"gated_blocks\..*\.routed\.(gate|router.*)\.weight")),
    ("experts", re.compile(r"gated_blocks\..*\.routed\..*")),
    ("feed_forward", re.compile(r"gated_blocks\..*")),
    ("contrastive", re.compile(r"contrastive\..*")),
    ("language", re.compile(r"language\..*")),
    ("vision", re.compile(r"media_encoders\..*")),
)
OTHER = "other"


def part_of(name: str) -> str:
    """The part that a parameter counts to."""
    return next((part for part, pattern in PARTS if pattern.fullmatch(name)), OTHER)


class GradientParts:
    """Watches the optimizer's own step, where DeepSpeed hands it this rank's gradients.

    It costs nothing in steps that are not watched. Without ZeRO nothing is watched: DeepSpeed keeps no
    norm there to compare with.

    Args:
        view: of the engine.
        stage: of ZeRO.

    Attributes:
        parts: all parts that are trained, alike on every rank.
        watching: whether the next step is to be looked at.
    """

    def __init__(self, view: EngineView, stage: int) -> None:
        self._view = view
        self.parts = sorted({part_of(name) for name in view.shapes}) if stage > 0 else []
        self._places: dict[int, list[tuple[int, int, int]]] = {}
        for fragment in view.fragments if stage > 0 else ():
            place = (self.parts.index(part_of(fragment.name)), fragment.offset, fragment.numel)
            self._places.setdefault(fragment.flat, []).append(place)
        self.watching = False
        self._sums: dict[int, Tensor] = {}
        if stage > 0:
            # A plain attribute in front of the method, as the guard does it: DeepSpeed calls it by name,
            # once for each flat tensor.
            take_step = view.inner.step

            def step(*arguments: object, **options: object) -> object:
                if self.watching:
                    self._look()
                return take_step(*arguments, **options)

            view.inner.step = step

    def watch(self, wanted: bool) -> None:
        """Look at the coming step, or not; what was seen before is forgotten."""
        self.watching = wanted
        self._sums = {}

    def sums(self) -> list[float]:
        """This rank's summed squares by part; over all ranks every element is in it once."""
        return [float(self._sums.get(part, 0.0)) for part in range(len(self.parts))]

    def _look(self) -> None:
        for flat, key in enumerate(self._view.keys):
            if key.grad is None:
                continue  # not the turn of this one
            gradient = key.grad.detach().view(-1)
            for part, offset, numel in self._places.get(flat, ()):
                piece = gradient.narrow(0, offset, numel)
                square = torch.linalg.vector_norm(piece, dtype=torch.float64).square()
                self._sums[part] = self._sums[part] + square if part in self._sums else square


def part_norms(parts: list[str], sums: list[float], norm: float) -> dict[str, float]:
    """Norm of each part, such that their squares sum to that of the whole.

    What the optimizer got was clipped; the whole norm, which is not, gives back the scale.

    Args:
        parts: names.
        sums: squares over all ranks.
        norm: of the whole gradient before clipping.
    """
    total = sum(sums)
    if total == 0:
        return {f"grad_norm/{part}": 0.0 for part in parts}
    return {
        f"grad_norm/{part}": norm * (square / total) ** 0.5
        for part, square in zip(parts, sums, strict=True)
    }
