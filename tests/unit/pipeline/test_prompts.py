import numpy as np
import pytest
import torch

from data_prep.errors import ConfigError
from pipeline.prompts import (
    VQA_FORM,
    continue_texts,
    encode_prompts,
    few_shot,
    image_bytes,
    place_images,
    prompt_ids,
    text_ids,
)
from pipeline.trained import open_trained
from tests.helpers.pictures import noise_picture


@pytest.fixture(scope="module")
def objective(trained_root):
    return open_trained(str(trained_root / "flamingo")).objective


@pytest.fixture(scope="module")
def words(objective):
    return lambda text: objective.text.tokenizer(text, add_special_tokens=False)["input_ids"]


def picture():
    return image_bytes(noise_picture())


def marks(objective):
    text = objective.text
    return text.begin_id, text.token_ids.media["image"], text.end_ids[0], text.end_ids[-1]


def test_a_query_alone_is_what_stands_before_every_caption(objective):
    assert prompt_ids(objective.text, [[picture()]]) == [objective.text.prompt]


def test_a_query_is_the_beginning_of_a_pair(objective, words):
    begin, image, _, _ = marks(objective)
    ids = prompt_ids(objective.text, [[picture(), "two small red"]])
    assert ids == [[begin, image, *words("two small red")]]
    (pair,) = objective.text.encode([[picture(), "two small red"]])
    assert pair.ids[: len(ids[0])] == ids[0]


def test_shots_are_chunks_and_only_the_last_is_open(objective, words):
    begin, image, end, _ = marks(objective)
    parts = few_shot([(picture(), "red"), (picture(), "a blue square")], picture(), "large")
    expected = [begin, image, *words("red"), end, image, *words("a blue square"), end, image]
    assert prompt_ids(objective.text, [parts]) == [[*expected, *words("large")]]
    assert prompt_ids(objective.text, [parts[:-1]]) == [expected]


def test_shots_are_laid_out_as_an_interleaved_document_of_training(objective):
    """Also one that training would cut: an evaluation is told, not shortened in silence."""
    shots = [(picture(), f"small red circle {n}") for n in range(20)]
    parts = few_shot(shots, picture(), "large blue star")
    (ids,) = prompt_ids(objective.text, [parts])
    assert ids.count(objective.text.token_ids.media["image"]) == 21
    (document,) = objective.text.encode([parts])
    assert document.ids == ids[: len(document.ids)] and len(document.ids) < len(ids)


def test_a_text_cannot_spell_the_marks(objective, words):
    begin, image, _, _ = marks(objective)
    ids = prompt_ids(objective.text, [[picture(), "red<image><|endofchunk|>"]])
    assert ids == [[begin, image, *words("red")]]


def test_several_images_before_a_question(objective, words):
    begin, image, end, _ = marks(objective)
    question = VQA_FORM.format(question="which is larger?")
    ids = prompt_ids(objective.text, [[picture(), picture(), question]])
    assert ids == [[begin, image, image, *words(question)]]
    assert end not in ids[0]


def test_a_text_without_an_image(objective, words):
    ids = prompt_ids(objective.text, [["a red star"]])
    assert ids == [[objective.text.begin_id, *words("a red star")]]


@pytest.mark.parametrize("prompt", ["", "what is this?"])
def test_without_marks_all_images_stand_in_front(prompt):
    assert place_images(prompt, [b"1", b"2"]) == [b"1", b"2", *([prompt] if prompt else [])]


def test_marks_say_where_the_images_stand():
    assert place_images("<image>red<image><image>two", [b"1", b"2", b"3"]) == [
        *(b"1", "red", b"2", b"3", "two")
    ]
    assert place_images("before <image>", [b"1"]) == ["before ", b"1"]


def test_more_marks_than_images_are_named_with_both_counts():
    with pytest.raises(ConfigError, match="(?s)--prompt = .*2 for 1.*give as many images as marks"):
        place_images("<image>red<image>", [b"1"])
    with pytest.raises(ConfigError, match="2 for 3"):
        place_images("<image>red<image>", [b"1"] * 3)
    with pytest.raises(ConfigError, match="line 7.*\n.*1 marks <image> and no image is given"):
        place_images("<image>", [], key="line 7")


def test_every_prompt_with_a_broken_image_is_named(objective):
    good, bad = picture(), picture()[:30]
    with pytest.raises(ConfigError) as caught:
        encode_prompts(objective.text, objective.image, [[bad], [good], [good, b"", "x"]])
    assert [p.key for p in caught.value.problems] == ["prompt 0", "prompt 2"]
    assert "image 1 can be decoded" in caught.value.problems[1].rule


def test_a_text_behind_a_prompt_goes_on_where_the_prompt_ends(objective):
    text, image = objective.text, picture()
    (begun,) = prompt_ids(text, [[image]])
    (whole,) = prompt_ids(text, [[image, "two small red"]])
    assert begun + text_ids(text, "two small red") == whole
    assert text_ids(text, "") == []


def test_texts_are_what_is_generated_behind_the_prompts(objective):
    prompts = encode_prompts(objective.text, objective.image, [[picture(), "a"], [picture()]])
    place = torch.device("cpu"), torch.float32
    said = continue_texts(objective.model, objective.text, prompts, *place, max_new_tokens=5)
    ids = objective.model.generate(
        *prompts.to(*place),
        max_new_tokens=5,
        eos_token_id=objective.text.end_ids,
        pad_token_id=objective.text.pad_id,
    )
    new = ids[:, prompts.input_ids.shape[1] :].tolist()
    assert said == [objective.text.decode(row) for row in new]


def test_a_prompt_sees_its_own_images_and_padding_stands_on_the_left(objective):
    pictures = [picture() for _ in range(3)]
    texts = [[pictures[0], "red"], ["only text here"], [pictures[1], "a", pictures[2], "two big"]]
    together = encode_prompts(objective.text, objective.image, texts)
    assert together.slots.tolist() == [[0, -1], [-1, -1], [1, 2]]
    mask = together.attention_mask.int()
    assert mask[:, -1].all() and not mask.all() and (mask.diff(dim=1) >= 0).all()
    for row, (ids, mask) in enumerate(
        zip(together.input_ids, together.attention_mask, strict=True)
    ):
        assert ids[mask].tolist() == prompt_ids(objective.text, [texts[row]])[0]
    expected = [objective.image.decode(data) for data in pictures]
    assert torch.equal(together.pixels, torch.from_numpy(np.stack(expected)))


def test_a_batch_gives_what_its_prompts_give_alone(objective):
    texts = [[picture(), "red"], [picture(), "a", picture(), "two big"]]
    settings = {"max_new_tokens": 6, "eos_token_id": objective.text.end_ids}
    settings |= {"pad_token_id": objective.text.pad_id}

    def generated(prompts):
        encoded = encode_prompts(objective.text, objective.image, prompts)
        device = next(objective.model.parameters()).device
        ids = objective.model.generate(*encoded.to(device, torch.float32), **settings)
        width = encoded.input_ids.shape[1]
        return [objective.text.decode(row[width:].tolist()) for row in ids]

    assert generated(texts) == [generated([one])[0] for one in texts]


def test_the_control_has_the_same_prompts_and_black_images(objective):
    prompts = encode_prompts(objective.text, objective.image, [[picture(), "red"]])
    black = prompts.zero_images()
    assert black.pixels.shape == prompts.pixels.shape and not black.pixels.any()
    assert torch.equal(black.input_ids, prompts.input_ids)


def test_prompts_without_any_image_still_run_the_encoder(objective):
    prompts = encode_prompts(objective.text, objective.image, [["red"]])
    assert prompts.slots.tolist() == [[-1]] and prompts.pixels.shape[0] == 1
    assert torch.isfinite(
        prompts.media(torch.device("cpu"), torch.float32).inputs["image"].data
    ).all()
