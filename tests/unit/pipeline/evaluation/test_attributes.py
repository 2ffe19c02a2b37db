"""Attribute accuracy and chance on captions whose figures can be counted by hand."""

import pytest

from data_prep.examples.scenes import parse_caption
from pipeline.evaluation.attributes import attribute_scores, chance

TRUE = [
    "a small red circle left of a large blue square",
    "a small red circle left of a large red star",
]


def test_perfect_captions_and_silence():
    assert attribute_scores(TRUE, TRUE, parse_caption)["attribute_accuracy"].value == 1.0
    assert attribute_scores(["", ""], TRUE, parse_caption)["attribute_accuracy"].value == 0.0


def test_one_wrong_word_costs_one_attribute():
    scores = attribute_scores([TRUE[0].replace("blue", "green"), TRUE[1]], TRUE, parse_caption)
    assert scores["attribute_accuracy"].value == pytest.approx(17 / 18)
    assert scores["attribute_accuracy"].per_sample.tolist() == pytest.approx([8 / 9, 1.0])
    assert scores["attribute_colour2"].value == 0.5


def test_chance_is_the_best_constant_answer():
    assert chance(TRUE, parse_caption) == 16 / 18
