import pytest

from pipeline.evaluation.config import EvaluationData
from pipeline.evaluation.layouts.read import read_records
from tests.helpers.field_files import coco_data, write_images, write_json


@pytest.fixture
def changed(tmp_path, refused):
    """The rules broken by COCO captions of three images after a change."""

    def rules(change) -> str:
        data = coco_data(3)
        change(data["images"], data["annotations"])
        annotations = write_json(tmp_path / "a.json", data)
        found = refused(path=str(tmp_path), annotations=annotations, layout="coco")
        assert set(found) == {"annotations"}
        return found["annotations"]

    return rules


def test_images_and_annotations_given_twice(changed):
    rule = changed(lambda images, _: images.append(images[1]))
    assert rule == "every image has an id of its own; not so: images[3]"
    rule = changed(lambda _, annotations: annotations.append(annotations[0]))
    assert rule == "every annotation has an id of its own; not so: annotations[15]"


def test_captions_of_images_that_are_not_listed(changed):
    rule = changed(lambda _, annotations: [a.update(image_id=7) for a in annotations[:7]])
    assert rule == (
        "every image_id is the id of an image; not so: annotations[0], annotations[1], annotations[2], "
        "annotations[3], annotations[4] and 2 more"
    )


def test_missing_and_wrong_keys_are_told_together(changed):
    def change(images, annotations):
        del images[0]["file_name"]
        images[1]["id"] = 1.5
        del annotations[3]["caption"]
        annotations[4]["image_id"] = True
        annotations[5] = "a caption"

    rules = changed(change).split("\n")
    assert "every entry has file_name, a text; not so: images[0]" in rules
    assert "every entry has id, a number or a text; not so: images[1]" in rules
    assert "every entry has caption, a text; not so: annotations[3]" in rules
    assert "every entry has image_id, a number or a text; not so: annotations[4]" in rules
    assert "annotations is a list of objects; not so: annotations[5]" in rules


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd", "a/../../x", "s3://x/y", "", "..\\x"])
def test_files_elsewhere_are_refused(changed, name):
    rule = changed(lambda images, _: images[2].update(file_name=name))
    assert rule.startswith("file_name is a file below the folder of images; not so: images[2]")


def test_images_without_captions_and_empty_captions_are_counted(tmp_path):
    data = coco_data(3)
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 101]
    data["annotations"][0]["caption"] = "  "
    write_images(tmp_path, [image["file_name"] for image in data["images"]])
    annotations = write_json(tmp_path / "a.json", data)
    records = read_records(EvaluationData(path=str(tmp_path), annotations=annotations))
    assert records.counts["without_captions"] == records.counts["empty_captions"] == 1
    assert [len(r.texts) for r in records.items] == [4, 5]


def test_a_file_without_captions_is_refused(changed):
    rule = changed(lambda _, annotations: [a.update(caption="") for a in annotations])
    assert rule.startswith("holds something to evaluate; its entries: {'found': 3,")
