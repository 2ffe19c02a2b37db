"""Made-up scenes of coloured shapes, with captions that follow exactly from them.

    "two small red circles left of a large blue square"

A scene has one group or two; a group is a count of equal shapes. Since the caption is a function
of the scene and `parse_caption` its inverse, a model's captions can be scored attribute by
attribute. Some pairs of (colour, shape) never occur together in training scenes (`held_out`): to
caption them a model must bind words to what it sees rather than recall whole scenes.
"""

import hashlib
import math
import random
import re
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 215, 20),
    "purple": (140, 40, 170),
    "orange": (245, 130, 10),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": 5.5, "large": 8.5}  # radius in pixels of a canvas 64 wide
COUNTS = ("one", "two", "three")
RELATIONS = ("left of", "above")
HELD_OUT_SHARE = 0.15

_CANVAS = 64.0
_SUPERSAMPLE = 3
_ONE_GROUP_SHARE = 0.25
_GAP = 1.0  # pixels between shapes, and to the edge of their part of the canvas


@dataclass(frozen=True)
class Group:
    """`count` equal shapes."""

    count: str
    size: str
    colour: str
    shape: str

    @property
    def phrase(self) -> str:
        if self.count == "one":
            return f"a {self.size} {self.colour} {self.shape}"
        return f"{self.count} {self.size} {self.colour} {self.shape}s"


@dataclass(frozen=True)
class Scene:
    """One or two groups; `seed` decides positions and background, which no caption mentions."""

    groups: tuple[Group, ...]
    relation: str | None
    seed: int

    @property
    def caption(self) -> str:
        if self.relation is None:
            return self.groups[0].phrase
        return f"{self.groups[0].phrase} {self.relation} {self.groups[1].phrase}"

    @property
    def attributes(self) -> dict[str, str]:
        """What the caption says, as `parse_caption` gives it back."""
        found = {}
        for i, group in enumerate(self.groups, start=1):
            found |= {
                f"count{i}": group.count,
                f"size{i}": group.size,
                f"colour{i}": group.colour,
                f"shape{i}": group.shape,
            }
        return found if self.relation is None else found | {"relation": self.relation}


def held_out(scene: Scene) -> bool:
    """Whether the scene's pair of (colour, shape), in either order, is kept out of training."""
    if len(scene.groups) < 2:
        return False
    pair = "|".join(sorted(f"{g.colour} {g.shape}" for g in scene.groups))
    digest = hashlib.sha256(pair.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def make_scene(seed: int) -> Scene:
    """Draws any scene, held out or not."""
    return _draw(seed, None)


def make_training_scene(seed: int) -> Scene:
    """Draws a scene that is not held out; a quarter of them have one group."""
    return _draw(seed, False)


def make_held_out_scene(seed: int) -> Scene:
    """Draws a scene of two groups that training never shows together."""
    return _draw(seed, True)


def _draw(seed: int, want_held_out: bool | None) -> Scene:
    rng = random.Random(f"scene {seed}")
    one_group = rng.random() < _ONE_GROUP_SHARE and want_held_out is not True
    while True:
        groups = tuple(
            Group(
                rng.choice(COUNTS), rng.choice([*SIZES]), rng.choice([*COLOURS]), rng.choice(SHAPES)
            )
            for _ in range(1 if one_group else 2)
        )
        scene = Scene(groups, None if one_group else rng.choice(RELATIONS), seed)
        if want_held_out is None or held_out(scene) == want_held_out:
            return scene


def render(scene: Scene, size: int = 64) -> Image.Image:
    """Draws the scene, antialiased: RGB, `size` x `size` pixels."""
    rng = random.Random(f"picture {scene.seed}")
    half = _CANVAS / 2
    boxes = {
        None: [(0.0, 0.0, _CANVAS, _CANVAS)],
        "left of": [(0.0, 0.0, half, _CANVAS), (half, 0.0, _CANVAS, _CANVAS)],
        "above": [(0.0, 0.0, _CANVAS, half), (0.0, half, _CANVAS, _CANVAS)],
    }[scene.relation]
    side = size * _SUPERSAMPLE
    scale = side / _CANVAS
    grey = rng.choice((255, rng.randint(225, 250)))
    canvas = Image.new("RGB", (side, side), (grey, grey, grey))
    draw = ImageDraw.Draw(canvas)
    for group, box in zip(scene.groups, boxes, strict=True):
        radius = SIZES[group.size] * rng.uniform(0.95, 1.0)
        for x, y in _place(rng, COUNTS.index(group.count) + 1, radius, box):
            shift = rng.randint(-12, 12)
            colour = tuple(min(255, max(0, c + shift)) for c in COLOURS[group.colour])
            _draw_shape(draw, group.shape, x * scale, y * scale, radius * scale, colour)
    return canvas.reduce(_SUPERSAMPLE)


def _place(
    rng: random.Random, count: int, radius: float, box: tuple[float, float, float, float]
) -> list[tuple[float, float]]:
    """Centres of `count` shapes inside the box whose squares do not touch."""
    left, top, right, bottom = box
    margin = radius + _GAP
    apart = 2 * radius + _GAP
    while True:  # three large ones fill half the canvas at most: a draw fits one time in a few
        centres = [
            (rng.uniform(left + margin, right - margin), rng.uniform(top + margin, bottom - margin))
            for _ in range(count)
        ]
        if all(
            max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= apart
            for i, a in enumerate(centres)
            for b in centres[:i]
        ):
            return centres


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, colour: tuple[int, ...]
) -> None:
    if shape == "circle":
        # Hollow: on a few pixels a full disc is told from a square by its corners alone.
        draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=round(0.45 * r))
    elif shape == "square":
        h = 0.88 * r
        draw.rectangle((x - h, y - h, x + h, y + h), fill=colour)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=colour)
    else:
        points = []
        for k in range(10):
            reach = r if k % 2 == 0 else 0.42 * r
            angle = math.pi * (k / 5 - 0.5)
            points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        draw.polygon(points, fill=colour)


_WORDS = {
    **{word: ("count", word) for word in COUNTS},
    **{word: ("count", "one") for word in ("a", "an")},
    **{word: ("size", word) for word in SIZES},
    **{word: ("colour", word) for word in COLOURS},
    **{shape + plural: ("shape", shape) for shape in SHAPES for plural in ("", "s")},
}


def parse_caption(text: str) -> dict[str, str] | None:
    """Reads a caption back into attributes; the inverse of `Scene.caption`.

    Text that strays from the grammar is read as far as it goes, word by word: unknown words are
    skipped, the first word of a kind wins, and a second group begins at the relation or at the
    first word after a shape.

    Returns:
        keys among count1 size1 colour1 shape1 relation count2 size2 colour2 shape2; None when the
        text says none of them.
    """
    found: dict[str, str] = {}
    group = 1
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in ("left", "above"):
            found.setdefault("relation", "left of" if word == "left" else "above")
            group = 2
        elif word in _WORDS:
            kind, value = _WORDS[word]
            if group == 1 and "shape1" in found:
                group = 2
            found.setdefault(f"{kind}{group}", value)
    return found or None
