"""Against the token lists of the real PTBTokenizer (ptb_tokens.json), and itself where Java is there."""

import json
import random as randoms
import shutil
import string
import subprocess
import time
from pathlib import Path

import pycocoevalcap.tokenizer.ptbtokenizer as theirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.metrics.tokenize import tokenize

REFERENCE = json.loads(Path(__file__).with_name("ptb_tokens.json").read_text())


def test_tokens_are_those_of_the_real_one():
    wrong = [(text, wanted, tokenize(text)) for text, wanted in REFERENCE["equal"]]
    assert [w for w in wrong if w[1] != w[2]] == []
    assert len(REFERENCE["equal"]) > 1500


def test_what_is_known_to_differ_still_does_and_is_rare():
    """One that becomes equal moves to the other list."""
    assert all(tokenize(text) != wanted for text, wanted in REFERENCE["known_to_differ"])
    assert len(REFERENCE["known_to_differ"]) <= 5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A man's dog isn't here.", "a man 's dog is n't here"),
        ("Two cats' toys, and one: (red)!", "two cats toys and one -lrb- red -rrb-"),
        ("the U.S. at 5:30 p.m.", "the u.s. at 5:30 p.m."),
        ("No. 5, no.", "no. 5 no"),
        ("They cannot; gonna", "they can not gon na"),
        ("a black-and-white T-shirt", "a black-and-white t-shirt"),
        ("", ""),
        ("... - '\"", ""),
    ],
)
def test_by_hand(text, wanted):
    assert tokenize(text) == wanted.split()


@pytest.mark.skipif(shutil.which("java") is None, reason="compares with Java where it is there")
def test_fresh_captions_are_tokenized_as_by_java(tmp_path):
    seed = randoms.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    random = randoms.Random(seed)
    words = [w for text, _ in REFERENCE["equal"] if text.isascii() for w in text.split()]
    words = [w for w in words if w.strip(string.punctuation).isalpha() and "." not in w[:-1]]
    texts = [" ".join(random.choices(words, k=random.randint(3, 12))) for _ in range(1500)]
    (tmp_path / "captions.txt").write_text("\n".join(texts))
    jar = Path(theirs.__file__).with_name(theirs.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", str(tmp_path / "captions.txt")]
    out = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    lines = out.replace("\u00a0", " ").split("\n")
    found = [[w for w in line.split() if w not in theirs.PUNCTUATIONS] for line in lines]
    wrong = [
        (text, wanted)
        for text, wanted in zip(texts, found, strict=False)
        if tokenize(text) != wanted
    ]
    # Words of all kinds in any order, such as an emoticon before a quote: harder than captions.
    assert len(wrong) < 0.01 * len(texts), wrong[:10]


@given(st.text())
def test_any_text_has_tokens_and_they_hold_no_space(text):
    assert all(token and not any(c.isspace() for c in token) for token in tokenize(text))


def test_hostile_texts_take_no_longer_than_they_are_long():
    start = time.process_time()
    for text in ("a" * 5000, "a." * 3000, "a-" * 3000, "<" * 3000, "a@" * 2000, "www." * 1500):
        tokenize(text)
    assert time.process_time() - start < 10
