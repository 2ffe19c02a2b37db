"""Accuracy of VQAv2: answers made alike as its evaluation makes them, and compared with ten people's."""

import re
from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.metrics.score import Score, mean_score

_ARTICLES = {"a", "an", "the"}
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# A period goes unless a digit follows it; of one answer only this many do.
_PERIOD, _PERIODS = re.compile(r"\.(?!\d)"), 32
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The contractions that the evaluation knows: spelled without one of their apostrophes they are
# given it back. It spells "somebody'd" the other way round.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_SPELLED = {
    right[:at] + right[at + 1 :]: right
    for right in _CONTRACTIONS.split()
    for at, letter in enumerate(right)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def vqa_accuracy(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> Score:
    """Mean over questions of min(1, people who gave this answer / 3).

    Of a question with ten answers that is the mean over the ten sets of nine. Where all people gave
    the same answer, neither theirs nor the model's is normalized, as in the field's evaluation.

    Args:
        answers: a model's answer to each of N questions.
        truths: people's answers to each; VQAv2 has ten.

    Raises:
        ValueError: the numbers of questions differ, or one has no answer.

    Source: Antol et al. (arXiv:1505.00468) section 3, and the evaluation code of VQAv2, followed where
    they differ.
    """
    if len(answers) != len(truths):
        raise ValueError(f"{len(answers)} answers to {len(truths)} questions")
    if without := sum(not t for t in truths):
        raise ValueError(f"{without} questions have no answer to compare with")
    values = [_accuracy(a, list(t)) for a, t in zip(answers, truths, strict=True)]
    return mean_score(np.array(values, np.float64))


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, numbers up to ten as digits, apostrophes in place.

    A mark that touches a space somewhere in the answer, or stands in an answer with a number such as
    1,000, is taken out; another one becomes a space.
    """
    text = _one_line(text)
    joined = bool(_COMMA_IN_NUMBER.search(text))
    marked = text
    for mark in _PUNCTUATION:
        touches = f"{mark} " in text or f" {mark}" in text
        marked = marked.replace(mark, "" if joined or touches else " ")
    words = _PERIOD.sub("", marked, count=_PERIODS).lower().split()
    words = [_DIGITS.get(word, word) for word in words]
    return " ".join(_SPELLED.get(word, word) for word in words if word not in _ARTICLES)


def _accuracy(answer: str, truths: list[str]) -> float:
    answer, truths = _one_line(answer), [_one_line(t) for t in truths]
    if len(set(truths)) > 1:
        answer, truths = normalize_answer(answer), [normalize_answer(t) for t in truths]
    same = truths.count(answer)
    # Leaving out one of the same leaves same - 1 of them; leaving out another one leaves all.
    right = same * min(1, (same - 1) / 3) + (len(truths) - same) * min(1, same / 3)
    return right / len(truths)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
