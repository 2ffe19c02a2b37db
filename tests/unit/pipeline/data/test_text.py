"""Pairs and interleaved documents to tokens and labels, as open_flamingo masks them."""

import pytest

from model.tokens import TokenIds
from pipeline.data.text import IGNORE, TextFormat
from pipeline.data.tokenizer import train_tokenizer

END, IMAGE = 300, 301
PICTURE = b"an image"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red star", "two small blue squares left of a circle"] * 5, 300)


@pytest.fixture
def text(tokenizer):
    return TextFormat(tokenizer, TokenIds({"image": IMAGE}, (END,)), 24, 2)


def words(text, string):
    return text.tokenizer(string, add_special_tokens=False)["input_ids"]


def encode(text, *parts):
    (encoded,) = text.encode([list(parts)])
    assert len(encoded.ids) == len(encoded.labels)
    return encoded


def test_a_pair_predicts_its_caption_and_both_ends(text):
    begin, end = text.tokenizer.bos_token_id, text.tokenizer.eos_token_id
    body = words(text, "a red star")
    encoded = encode(text, PICTURE, "a red star")
    assert encoded.ids == [begin, IMAGE, *body, END, end]
    assert encoded.labels == [IGNORE, IGNORE, *body, END, end]
    assert encoded.num_images == 1 and encoded.num_targets == len(body) + 2
    assert text.prompt == [begin, IMAGE] and text.end_ids == [END, end]


def test_an_interleaved_document_predicts_what_stands_behind_its_images(text):
    begin, end = text.tokenizer.bos_token_id, text.tokenizer.eos_token_id
    before, one, two = (words(text, s) for s in ("red", "star", "blue"))
    encoded = encode(text, "red", PICTURE, "star", PICTURE, "blue")
    assert encoded.ids == [begin, *before, IMAGE, *one, END, IMAGE, *two, END, end]
    ignored = [IGNORE] * (1 + len(before))
    assert encoded.labels == [*ignored, IGNORE, *one, END, IGNORE, *two, END, IGNORE]
    assert encoded.num_images == 2


def test_texts_in_a_row_are_one_chunk_and_images_in_a_row_have_no_end_between(text):
    assert encode(text, PICTURE, "star", "blue").ids.count(END) == 1
    assert encode(text, PICTURE, PICTURE, "star").ids.count(END) == 1


def test_a_document_is_cut_before_an_image_too_many(text):
    encoded = encode(text, PICTURE, "red", PICTURE, "star", PICTURE, "blue")
    assert encoded.num_images == encoded.ids.count(IMAGE) == 2
    assert words(text, "blue")[0] not in encoded.ids


def test_images_behind_the_cut_have_no_token(text):
    encoded = encode(text, PICTURE, "red " * 40, PICTURE, "star")
    assert len(encoded.ids) == 24 and encoded.num_images == 1
    far = encode(text, "red " * 40, PICTURE, "star")
    assert far.num_targets == 0 and far.num_images == 0


def test_long_captions_are_cut_and_still_end(text):
    encoded = encode(text, PICTURE, "red " * 100)
    assert len(encoded.ids) == 24 and encoded.ids[-2:] == text.end_ids


def test_an_empty_caption_still_ends(text):
    assert encode(text, PICTURE, "").ids == [*text.prompt, *text.end_ids]


def test_marks_in_a_caption_ask_for_no_image(tokenizer):
    ids = TokenIds({"image": tokenizer("red")["input_ids"][0]}, (END,))
    encoded = encode(TextFormat(tokenizer, ids, 24), PICTURE, "red red")
    assert encoded.num_images == 1 == encoded.ids.count(ids.media["image"])


def test_a_caption_cannot_end_itself(text):
    encoded = encode(text, PICTURE, "red</s> star <s>")
    assert encoded.ids.count(text.tokenizer.eos_token_id) == 1
    assert encoded.ids.count(text.tokenizer.bos_token_id) == 1


def test_text_alone_is_a_target_whole(tokenizer):
    text = TextFormat(tokenizer, None, 24)
    encoded = encode(text, PICTURE, "a red star")
    body = [*words(text, "a red star"), tokenizer.eos_token_id]
    assert encoded.ids == [tokenizer.bos_token_id, *body] and encoded.labels == [IGNORE, *body]
    assert encoded.num_images == 0


def test_many_documents_are_as_each_alone(text):
    documents = [[PICTURE, "a red star"], ["red", PICTURE, "blue"], [PICTURE, ""]]
    assert text.encode(documents) == [text.encode([d])[0] for d in documents]


def test_decoding_ends_at_the_first_mark(text):
    body = words(text, "a red star")
    for end in text.end_ids:
        assert text.decode([*body, end, *body]) == "a red star"
