"""What the chat page answers, without the page."""

import threading

import pytest

from data_prep.errors import ConfigError
from pipeline.chat.desk import Desk, Shown, answer
from pipeline.generation.generate import continue_prompts
from pipeline.generation.settings import Sampling
from pipeline.prompts import image_bytes
from pipeline.trained import open_trained
from tests.helpers.pictures import noise_picture


@pytest.fixture(scope="module")
def trained(trained_root):
    return open_trained(str(trained_root / "flamingo"))


def noise():
    return image_bytes(noise_picture())


def test_the_answer_is_that_of_generate_with_a_picture_of_its_words(trained):
    a, b, sampling = noise(), noise(), Sampling(max_new_tokens=5)
    desk = Desk([Shown("a.png", a)], [Shown("b.png", b, "a red star")], "two", sampling)
    text, drawn = answer(trained, desk)
    assert text == continue_prompts(trained, [[b, "a red star", a, "two"]], sampling)[0]
    assert (drawn is not None) == bool(text)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"images": []}, "is dropped in"),
        ({"prompt": "<image><image>"}, "2 for 1"),
        ({"examples": [Shown("b.png", b"", " ")]}, "(?s)b.png.*has a text beside its image"),
        ({"sampling": Sampling(beams=0), "images": []}, "2 problems"),
        ({"images": [Shown("odd.png", b"nothing")]}, "(?s)odd.png.*image 0 can be decoded"),
        ({"prompt": "red " * 3000}, "fits into .* positions"),
    ],
)
def test_what_is_wrong_is_said(trained, change, rule):
    desk = Desk(**{"images": [Shown("a.png", noise())]} | change)
    with pytest.raises(ConfigError, match=rule):
        answer(trained, desk)


def test_visitors_who_ask_at_once_get_what_they_get_alone(trained):
    """A model holds the images of one prompt at a time."""
    sampling = Sampling(max_new_tokens=6, temperature=3.0)
    desks = [Desk([Shown("a.png", noise())], [], text, sampling) for text in ("", "two", "a red")]
    alone = [answer(trained, desk)[0] for desk in desks]
    found = [None] * len(desks)

    def ask(number):
        found[number] = answer(trained, desks[number])[0]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(desks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
