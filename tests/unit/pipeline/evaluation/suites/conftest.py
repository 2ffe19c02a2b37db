import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.distributed import DistInfo
from pipeline.evaluation.asker import Asker
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.layouts.record import Record, Records
from pipeline.trained import open_trained

WORDS = ("small", "large", "red", "blue", "green", "circle", "square", "star", "two", "left", "of")


@dataclass(frozen=True)
class Noise:
    """An image of noise."""

    name: str
    data: bytes = field(repr=False, default=b"")

    def open(self) -> bytes:
        return self.data


def noise(name: str) -> Noise:
    """Of large squares: fine noise is grey to a tower, and every image the same."""
    squares = np.random.default_rng().choice(np.array([0, 255], np.uint8), (4, 4, 3))
    pixels = squares.repeat(16, axis=0).repeat(16, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Noise(name, buffer.getvalue())


def words(count: int) -> str:
    return " ".join(np.random.default_rng().choice(WORDS, count))


def captions(count: int, **more) -> Records:
    texts: dict[str, None] = {}
    while len(texts) < count:  # no two alike: retrieval compares each text once
        texts[words(3 + len(texts) % 4)] = None
    items = [Record(f"{n}", noise(f"{n}.png"), (t,), **more) for n, t in enumerate(texts)]
    return Records("coco", items, {"kept": count})


def write_coco(folder: Path, texts: list[str]) -> str:
    """An image of noise for each caption, in COCO's layout; the setting that names them."""
    for number in range(len(texts)):
        (folder / f"{number}.png").write_bytes(noise("").data)
    told = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(len(texts))],
        "annotations": [{"id": n, "image_id": n, "caption": t} for n, t in enumerate(texts)],
    }
    (folder / "captions.json").write_text(json.dumps(told))
    return f"evaluation.data={{path: {folder}, annotations: {folder}/captions.json}}"


@pytest.fixture(scope="session")
def objective(trained_root):
    objective = open_trained(str(trained_root / "flamingo")).objective
    # Open gates: a model of six steps would hardly look at its images.
    for block in objective.model.gated_blocks:
        block.attn_gate.data.fill_(2.0)
        block.ff_gate.data.fill_(1.0)
    return objective


@pytest.fixture
def asker(objective):
    def make(**settings):
        settings = {"max_new_tokens": 6, "batch_size": 4, "silent": True} | settings
        return Asker(objective, objective.model, DistInfo.alone(), **settings)

    return make


@pytest.fixture
def config():
    return lambda **settings: EvaluationConfig(**{"resamples": 20} | settings)
