"""Labelled files to dataset folders, and what training makes of them, token for token."""

import hashlib
import io
import json
from dataclasses import replace

import pytest
from PIL import Image

from data_prep.errors import ConfigError
from data_prep.tar_members import Prompt
from pipeline.data.batch import collate
from pipeline.data.dataset import Dataset
from pipeline.data.samples import decode_sample
from pipeline.data.text import IGNORE
from pipeline.evaluation.config import EvaluationData
from pipeline.finetune.label import label_folder
from pipeline.prompts import VQA_FORM, prompt_ids
from pipeline.trained import open_trained
from tests.helpers.pictures import noise_picture


@pytest.fixture(scope="module")
def objective(trained_root):
    objective = open_trained(str(trained_root / "flamingo")).objective
    objective.text = replace(objective.text, max_tokens=128)  # its words are spelt
    return objective


def save(path, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise_picture(30, 20).save(path, kind)


@pytest.fixture
def classes(tmp_path):
    for name in ("cat", "dog"):
        for number in range(3):
            save(tmp_path / "pets" / name / f"{number}.png")
    save(tmp_path / "pets" / "cat" / "old.bmp", "BMP")
    return tmp_path / "pets"


@pytest.fixture
def questions(tmp_path):
    asked = {"questions": [], "data_subtype": "val2014"}
    told = {"annotations": [], "data_subtype": "val2014"}
    for number in (1, 2):
        save(tmp_path / "images" / f"{number}.png")
        about = {"question_id": number, "image_id": number}
        asked["questions"].append(about | {"question": "which colour?"})
        answers = [{"answer": a} for a in ["red"] * 6 + ["blue"] * 4]
        more = {"answer_type": "other", "question_type": "which", "multiple_choice_answer": "red"}
        told["annotations"].append(about | more | {"answers": answers})
    (tmp_path / "q.json").write_text(json.dumps(asked))
    (tmp_path / "a.json").write_text(json.dumps(told))
    return EvaluationData(
        path=str(tmp_path / "images"),
        questions=str(tmp_path / "q.json"),
        annotations=str(tmp_path / "a.json"),
    )


def parts_of(folder):
    dataset = Dataset(str(folder), "data.sources.x")
    return [dataset.read(n).parts for n in range(len(dataset))]


def test_classes_become_texts(classes, tmp_path):
    summary = label_folder(
        EvaluationData(path=str(classes)), tmp_path / "out", class_form="a {name}"
    )
    assert summary["samples"] == 7 and summary["classes"] == ["cat", "dog"]
    texts = sorted(text for _, text in parts_of(tmp_path / "out"))
    assert texts == ["a cat"] * 4 + ["a dog"] * 3


def test_questions_are_prompts_and_the_answer_most_people_gave_the_text(questions, tmp_path):
    label_folder(questions, tmp_path / "out")
    for image, prompt, text in parts_of(tmp_path / "out"):
        assert isinstance(image, bytes) and isinstance(prompt, Prompt)
        assert (prompt, text) == ("Question: which colour? Short answer:", " red")


def test_every_caption_of_an_image_is_a_sample(tmp_path):
    save(tmp_path / "images" / "a.png")
    images = [{"id": 1, "file_name": "a.png"}]
    captions = [{"id": n, "image_id": 1, "caption": c} for n, c in enumerate(["one", "two"])]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"images": images, "annotations": captions}))
    data = EvaluationData(path=str(tmp_path / "images"), annotations=str(path))
    assert label_folder(data, tmp_path / "out")["samples"] == 2
    assert [text for _, text in parts_of(tmp_path / "out")] == ["one", "two"]


def test_equal_files_give_equal_bytes(classes, tmp_path):
    digests = []
    for name in ("one", "two"):
        label_folder(EvaluationData(path=str(classes)), tmp_path / name)
        shard = (tmp_path / name / "shards" / "000000.tar").read_bytes()
        digests.append(hashlib.sha256(shard).hexdigest())
    assert digests[0] == digests[1]


def test_training_lays_a_question_out_as_evaluation_asks_it(questions, tmp_path, objective):
    label_folder(questions, tmp_path / "out")
    text, (image, prompt, answer) = objective.text, parts_of(tmp_path / "out")[0]
    (encoded,) = text.encode([[image, prompt, answer]])
    (asked,) = prompt_ids(text, [[image, VQA_FORM.format(question="which colour?")]])
    body = text.tokenizer(" red", add_special_tokens=False)["input_ids"]
    assert encoded.ids == [*asked, *body, *text.end_ids]
    assert encoded.labels == [IGNORE] * len(asked) + [*body, *text.end_ids]


def test_questions_can_be_packed_and_stand_beside_captions(questions, tmp_path, objective):
    label_folder(questions, tmp_path / "out")
    dataset, text = Dataset(str(tmp_path / "out"), "data.sources.x"), objective.text
    raw = [dataset.read(n) for n in range(2)]
    both = text.encode([r.parts for r in raw] + [[raw[0].images[0], "a red star"]])
    samples = [
        decode_sample(r, e, objective.image, -1, None)
        for r, e in zip([*raw, raw[0]], both, strict=True)
    ]
    packed = collate(samples, objective.image, pad_id=text.pad_id, pack_tokens=256)
    targets = packed.labels[packed.labels != IGNORE].tolist()
    assert targets == [t for e in both for t in e.labels if t != IGNORE]
    assert packed.num_images == 3


def test_a_prompt_that_leaves_no_room_has_nothing_to_learn(objective):
    short = replace(objective.text, max_tokens=6)
    (encoded,) = short.encode([[b"", Prompt("two small red circles left of"), " red"]])
    assert encoded.num_targets == 0 and len(encoded.ids) == 6


def test_pictures_that_cannot_be_decoded_are_counted(classes, tmp_path):
    (classes / "dog" / "broken.png").write_bytes(b"nothing")
    summary = label_folder(EvaluationData(path=str(classes)), tmp_path / "out")
    assert summary["statuses"] == {"ok": 7, "undecodable": 1}


def test_what_is_wrong_is_named_and_nothing_is_left(classes, tmp_path):
    (tmp_path / "out").mkdir()
    data = EvaluationData(path=str(classes))
    with pytest.raises(ConfigError) as caught:
        label_folder(data, tmp_path / "out", class_form="a cat")
    assert [p.key for p in caught.value.problems] == ["OUTPUT", "--class-form"]
    for file in classes.rglob("*.*"):
        file.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="has a picture that can be decoded"):
        label_folder(data, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "pets"]


def test_a_picture_keeps_its_bytes_where_a_shard_can_hold_them(classes, tmp_path):
    label_folder(EvaluationData(path=str(classes)), tmp_path / "out")
    stored = {parts[0] for parts in parts_of(tmp_path / "out")}
    kept = {p.read_bytes() for p in classes.rglob("*.png")}
    assert kept < stored
    (other,) = stored - kept
    assert Image.open(io.BytesIO(other)).format == "PNG"
