import secrets

import numpy as np
import pytest

from data_prep.examples import scenes
from data_prep.examples.scenes import (
    held_out,
    make_held_out_scene,
    make_scene,
    make_training_scene,
    parse_caption,
    render,
)

SEEDS = [secrets.randbelow(10**9) for _ in range(400)]


@pytest.mark.parametrize("make", [make_scene, make_training_scene, make_held_out_scene])
def test_a_caption_is_read_back(make):
    for seed in SEEDS:
        scene = make(seed)
        assert parse_caption(scene.caption) == scene.attributes, seed
        assert make(seed) == scene


def test_the_split_keeps_pairs_apart_in_either_order():
    for seed in SEEDS:
        training, other = make_training_scene(seed), make_held_out_scene(seed)
        assert not held_out(training) and held_out(other), seed
        assert len(other.groups) == 2
        turned = scenes.Scene(other.groups[::-1], other.relation, 0)
        assert held_out(turned), seed


def test_the_shares_are_as_documented():
    drawn = [make_training_scene(i) for i in range(4000)]
    assert abs(sum(len(s.groups) == 1 for s in drawn) / 4000 - 0.25) < 0.03
    kinds = [(c, s) for c in scenes.COLOURS for s in scenes.SHAPES]
    pairs = [(a, b) for i, a in enumerate(kinds) for b in kinds[: i + 1]]
    groups = [tuple(scenes.Group("one", "small", *kind) for kind in pair) for pair in pairs]
    share = sum(held_out(scenes.Scene(g, "above", 0)) for g in groups) / len(groups)
    assert 0.1 < share < 0.2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("nothing to see", None),
        ("Red circle!", {"colour1": "red", "shape1": "circle"}),
        ("three stars", {"count1": "three", "shape1": "star"}),
        ("a blue above two green", {"count1": "one", "colour1": "blue", "relation": "above"}),
        ("red square blue star", {"colour2": "blue", "shape2": "star"}),
        ("small small red circle circle", {"size1": "small", "shape2": "circle"}),
    ],
)
def test_other_text_is_read_as_far_as_it_goes(text, expected):
    found = parse_caption(text)
    if expected is None:
        assert found is None
    else:
        assert expected.items() <= found.items()


def test_all_shapes_are_drawn_where_the_caption_says():
    for seed in SEEDS[:25]:
        scene = make_held_out_scene(seed)
        pixels = np.asarray(render(scene, 128)).astype(int)
        background = np.median(pixels.reshape(-1, 3), axis=0)
        drawn = np.abs(pixels - background).max(axis=2) > 40
        axis = 1 if scene.relation == "left of" else 0
        halves = np.split(drawn, 2, axis=axis)
        assert all(half.any() for half in halves), seed
        edge = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
        assert not edge.any(), seed
        # The groups keep to their halves, so the line between them is free.
        assert not np.take(drawn, [63, 64], axis=axis).any(), seed


def test_rendering_is_a_function_of_the_scene():
    scene = make_scene(SEEDS[0])
    assert render(scene).tobytes() == render(scene).tobytes()
    assert render(scene, 48).size == (48, 48)
