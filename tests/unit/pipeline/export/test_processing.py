"""The processor that travels with a model makes of images and texts what training made of them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.image.formats import FORMATS
from pipeline.export.hub.processing_roseate import RoseateImageProcessor, RoseateProcessor
from pipeline.prompts import encode_prompts
from tests.unit.pipeline.export.cases import opened, picture


@pytest.fixture
def trained(trained_root):
    return opened(trained_root)


def processor_of(trained, fit="crop"):
    image = trained.objective.image
    images = RoseateImageProcessor(
        size=image.size, image_mean=image.mean, image_std=image.std, fit=fit
    )
    return RoseateProcessor(images, trained.objective.text.tokenizer)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_the_processor_makes_the_pixels_of_training(trained, fit):
    image = trained.objective.image
    section = image.config.model_copy(update={"fit": fit})
    ours = type(image)(image.size, image.mean, image.std, section)
    theirs = processor_of(trained, fit).image_processor
    for data in (
        *(picture("JPEG", (400, 300)), picture("PNG", (20, 33)), picture("PNG", (64, 64))),
        *(picture("PNG", (70, 50), "RGBA"), picture("PNG", (70, 50), "L")),
    ):
        opened_image = Image.open(io.BytesIO(data), formats=FORMATS)
        assert torch.equal(theirs.square(opened_image), torch.from_numpy(ours.decode(data))), fit


def test_a_picture_a_file_an_array_and_a_tensor_are_the_same(trained, tmp_path):
    processor = processor_of(trained).image_processor
    (tmp_path / "a.png").write_bytes(picture())
    image = Image.open(tmp_path / "a.png")
    array = np.asarray(image)
    forms = [image, str(tmp_path / "a.png"), array, torch.from_numpy(array.copy())]
    pixels = [processor(form)["pixel_values"] for form in forms]
    assert pixels[0].shape == (1, 3, 64, 64)
    assert all(torch.equal(pixels[0], other) for other in pixels[1:])


def test_what_is_no_image_is_refused(trained):
    processor = processor_of(trained)
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\], not float32 \[3, 8, 8\]"):
        processor(images=np.zeros((3, 8, 8), np.float32), text="")
    with pytest.raises(ValueError, match="is a picture of PIL, an array, a path or a URL, not 3"):
        processor(images=[3], text="")


def test_marks_and_images_must_agree(trained):
    processor, image = processor_of(trained), Image.new("RGB", (9, 9))
    with pytest.raises(
        ValueError, match="a text has 2 marks <image> for 1 images: '<image>a<image>"
    ):
        processor(images=[image], text="<image>a<image>")
    with pytest.raises(ValueError, match="3 lists of images for 2 texts"):
        processor(images=[image] * 3, text=["a", "b"])


def test_special_tokens_that_a_text_spells_are_dropped_as_in_training(trained):
    text = "a red</s> star<s>"
    got = processor_of(trained)(images=Image.new("RGB", (9, 9)), text=text)["input_ids"]
    objective = trained.objective
    want = encode_prompts(objective.text, objective.image, [[picture(), text]]).input_ids
    assert torch.equal(got, want)


def test_texts_end_at_their_first_end_mark(trained):
    processor = processor_of(trained)
    tokenizer = processor.tokenizer
    ids = tokenizer("a red star<|endofchunk|>two", add_special_tokens=False)["input_ids"]
    assert processor.batch_decode([ids, ids[:2]])[0] == "a red star" == processor.decode(ids)
    whole = processor.post_process_image_text_to_text([ids])
    assert whole == [tokenizer.decode(ids, skip_special_tokens=True)]
