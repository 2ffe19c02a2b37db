import pytest

from pipeline.evaluation.config import EvaluationData
from pipeline.evaluation.layouts.read import read_records
from pipeline.evaluation.layouts.vqa import image_names
from tests.helpers.field_files import vqa_data, write_images, write_json


def files(tmp_path, questions, annotations):
    return {
        "path": str(tmp_path),
        "questions": write_json(tmp_path / "q.json", questions),
        "annotations": write_json(tmp_path / "a.json", annotations),
    }


def test_questions_without_annotations_are_named(tmp_path, refused):
    questions, annotations = vqa_data(9)
    del annotations["annotations"][4]
    rules = refused(**files(tmp_path, questions, annotations))
    assert rules == {"questions": "every question has an annotation; not so: question 1004"}


def test_annotations_of_other_questions_are_counted(tmp_path):
    questions, annotations = vqa_data(9)
    del questions["questions"][6:]
    write_images(tmp_path, ["200.jpg", "201.jpg"])
    records = read_records(EvaluationData(**files(tmp_path, questions, annotations)))
    assert records.counts["other_annotations"] == 3 and len(records) == 6


def test_questions_and_annotations_given_twice(tmp_path, refused):
    questions, annotations = vqa_data(6)
    questions["questions"].append(questions["questions"][2])
    annotations["annotations"].append(annotations["annotations"][0])
    rules = refused(**files(tmp_path, questions, annotations))
    assert rules["questions"] == "every question has a question_id of its own; not so: questions[6]"
    assert rules["annotations"] == "every question has one annotation; not so: annotations[6]"


def test_files_of_two_releases_are_told(tmp_path, refused):
    questions, annotations = vqa_data(3)
    annotations["annotations"][1]["image_id"] = 77
    rules = refused(**files(tmp_path, questions, annotations))
    assert (
        rules["questions"] == "question and annotation are of the same image; not so: question 1001"
    )


def test_answers_of_too_few_people_are_refused(tmp_path, refused):
    questions, annotations = vqa_data(3)
    del annotations["annotations"][2]["answers"][1:]
    rules = refused(**files(tmp_path, questions, annotations))
    assert rules["annotations"] == (
        "every question has answers of at least 4 people, VQAv2 of ten; not so: annotations[2]"
    )


@pytest.mark.parametrize("image", ["../../etc/x", "/x", "a/../b"])
def test_images_elsewhere_are_refused(tmp_path, refused, image):
    questions, annotations = vqa_data(1)
    questions["questions"][0]["image_id"] = image
    rules = refused(**files(tmp_path, questions, annotations))
    assert "image_id is a file below the folder of images" in rules["questions"]


def test_a_subtype_that_leads_elsewhere_is_not_followed(tmp_path):
    questions, annotations = vqa_data(3, "../secret")
    write_images(tmp_path / "images", ["200.jpg"])
    section = files(tmp_path, questions, annotations) | {"path": str(tmp_path / "images")}
    assert read_records(EvaluationData(**section)).items[0].image.name == "200.jpg"


def test_names_of_images_likeliest_first():
    names = image_names("42", "val2014")
    assert names[0] == "COCO_val2014_000000000042.jpg" and names[1] == "000000000042.jpg"
    assert "42.jpg" in names and "val2014/COCO_val2014_000000000042.jpg" in names
    assert image_names("a/b", None) == ("a/b", "a/b.jpg", "a/b.jpeg", "a/b.png")
    assert image_names("42", None)[0] == "000000000042.jpg"
