import json

import pytest

from pipeline.evaluation.config import EvaluationData
from pipeline.evaluation.layouts.read import read_records
from tests.helpers.field_files import write_images


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "images", ["n01/1.jpg", "n01/2.jpg", "n02/1.jpg"])
    return tmp_path / "images"


def names_of(folder, text, file="names.txt"):
    path = folder.parent / file
    path.write_text(text)
    section = EvaluationData(path=str(folder), class_names=str(path))
    records = read_records(section)
    assert [r.texts[0] for r in records.items] == [
        records.class_names[r.label] for r in records.items
    ]
    return records.class_names


def test_names_by_line_by_folder_and_as_json(folder):
    assert names_of(folder, "great white shark\nhen\n") == ["great white shark", "hen"]
    assert names_of(folder, "n02 hen, biddy\nn01 shark\nn03 other\n") == ["shark", "hen, biddy"]
    by_folder = {"n02": "hen", "n01": "shark", "n03": "other"}
    assert names_of(folder, json.dumps(by_folder), "n.json") == ["shark", "hen"]
    index = {"0": ["n01", "shark"], "1": ["n02", "hen"]}
    assert names_of(folder, json.dumps(index), "n.json") == ["shark", "hen"]


@pytest.mark.parametrize(
    ("file", "text", "rule"),
    [
        ("n.txt", "one\ntwo\nthree\n", "has a line for each of 2 folders; seen: 3"),
        ("n.json", '{"n01": "shark"}', "names every folder; not so: n02"),
        ("n.json", '{"n01": 3, "n02": "x"}', "holds a JSON object of texts; seen: a dict"),
        ("n.json", '["a", "b"]', "holds a JSON object of texts; seen: a list"),
        ("n.json", "{", "is a file that can be read (Expecting property name"),
    ],
)
def test_names_of_other_classes_are_refused(folder, refused, file, text, rule):
    (folder.parent / file).write_text(text)
    found = refused(path=str(folder), class_names=str(folder.parent / file))
    assert found["class_names"].startswith(rule)


def test_names_that_are_not_there_and_empty_classes_are_told_together(folder, refused):
    (folder / "n03").mkdir()
    (folder / "n03" / "notes.txt").write_text("x")
    found = refused(path=str(folder), class_names=str(folder / "none.txt"))
    assert found["path"] == "every class has an image; not so: n03"
    assert found["class_names"].startswith("is a file that can be read ([Errno 2]")


def test_other_files_are_counted_and_hidden_ones_left_out(folder):
    (folder / "n01" / "readme.md").write_text("x")
    (folder / ".cache").mkdir()
    (folder / "n02" / ".hidden.jpg").write_bytes(b"x")
    write_images(folder, ["loose.jpg"])
    records = read_records(EvaluationData(path=str(folder)))
    assert records.counts["not_images"] == records.counts["images_beside_classes"] == 1
    assert len(records) == 3 and records.counts["classes"] == 2


def test_links_to_folders_elsewhere_are_followed(folder, tmp_path):
    write_images(tmp_path / "elsewhere", ["9.jpg"])
    (folder / "n03").symlink_to(tmp_path / "elsewhere")
    records = read_records(EvaluationData(path=str(folder)))
    assert records.items[-1].key == "n03/9.jpg" and records.items[-1].image.open()
