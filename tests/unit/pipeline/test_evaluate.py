"""Attribute accuracy and chance on captions whose figures can be counted by hand."""

from data_prep.examples.scenes import parse_caption
from pipeline.evaluate import attribute_accuracy, by_attribute, chance

TRUE = [
    "a small red circle left of a large blue square",
    "a small red circle left of a large red star",
]


def test_perfect_captions_and_silence():
    assert attribute_accuracy(TRUE, TRUE, parse_caption) == 1.0
    assert attribute_accuracy(["", ""], TRUE, parse_caption) == 0.0


def test_one_wrong_word_costs_one_attribute():
    said = [TRUE[0].replace("blue", "green"), TRUE[1]]
    assert attribute_accuracy(said, TRUE, parse_caption) == 17 / 18
    assert by_attribute(said, TRUE, parse_caption)["colour2"] == 0.5


def test_chance_is_the_best_constant_answer():
    assert chance(TRUE, parse_caption) == 16 / 18
