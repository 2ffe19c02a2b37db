"""Against what VQAv2's own evaluation gave on the same answers (vqav2_reference.json), and by hand."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.metrics.vqa import normalize_answer, vqa_accuracy

REFERENCE = json.loads(Path(__file__).with_name("vqav2_reference.json").read_text())


def test_answers_become_what_the_reference_makes_of_them():
    for text, wanted in REFERENCE["normalized"]:
        assert normalize_answer(text) == wanted, text


def test_accuracies_are_those_of_the_reference():
    answers, truths, wanted = zip(*REFERENCE["questions"], strict=True)
    assert len({round(w, 2) for w in wanted}) == 5  # nothing, 0.3, 0.6, 0.9 and 1 are all there
    assert vqa_accuracy(answers, truths).per_sample == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Dog.", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("DONT know", "don't know"),
        ("wouldnt've", "wouldn't've"),
        ("wouldntve", "wouldntve"),
        ("somebody'd", "somebodyd"),
        ("1,000", "1000"),
        ("a,b", "b"),  # the comma becomes a space, then the article goes
        ("red, blue", "red blue"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("left - right", "left right"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("u.s.", "us"),
        (" yes\n", "yes"),
        ("a an the", ""),
    ],
)
def test_rules_by_hand(text, wanted):
    assert normalize_answer(text) == wanted


def test_three_of_ten_people_make_an_answer_right_but_for_leaving_one_out():
    for same, wanted in ((0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)):
        truths = ["cat"] * same + [f"other {i}" for i in range(10 - same)]
        assert vqa_accuracy(["cat"], [truths]).value == pytest.approx(wanted)


@given(st.lists(st.sampled_from(["cat", "dog", "The cat", "2", "two"]), min_size=4, max_size=10))
def test_is_the_mean_over_all_sets_that_leave_one_person_out(truths):
    for answer in ("cat", "two"):
        alike = [normalize_answer(t) for t in truths] if len(set(truths)) > 1 else truths
        said = normalize_answer(answer) if len(set(truths)) > 1 else answer
        sets = itertools.combinations(alike, len(truths) - 1)
        wanted = np.mean([min(1, s.count(said) / 3) for s in sets])
        assert vqa_accuracy([answer], [truths]).value == pytest.approx(wanted)


def test_where_all_people_agree_nothing_is_normalized():
    assert vqa_accuracy(["the cat"], [["cat"] * 10]).value == 0
    assert vqa_accuracy(["the cat"], [["cat"] * 9 + ["a cat"]]).value == 1


@given(st.text(max_size=40))
def test_any_text_has_an_answer(text):
    once = normalize_answer(text)
    assert "\n" not in once and "  " not in once and once == once.strip()


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        vqa_accuracy(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="1 questions have no answer to compare with"):
        vqa_accuracy(["a"], [[]])
