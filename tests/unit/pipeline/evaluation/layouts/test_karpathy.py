from pipeline.evaluation.config import EvaluationData
from pipeline.evaluation.layouts.read import read_records
from tests.helpers.field_files import karpathy_data, write_images, write_json


def section(tmp_path, data, **more):
    return {"path": str(tmp_path), "annotations": write_json(tmp_path / "a.json", data), **more}


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path, refused):
    data = karpathy_data(["train", "test", "train"])
    files = section(tmp_path, data, split="tst+train+dev")
    rules = refused(**files)["annotations"]
    assert "has the split 'tst'" in rules and "has the split 'dev'" in rules
    try:
        read_records(EvaluationData(**files))
    except ValueError as error:
        assert "set split to one of: test (1), train (2)" in str(error)


def test_broken_images_are_told(tmp_path, refused):
    data = karpathy_data(["test"] * 4)
    data["images"][0]["filename"] = "../up.jpg"
    data["images"][1]["sentences"] = None
    data["images"][2]["sentences"][3] = {"tokens": []}
    data["images"][3]["filename"] = data["images"][2]["filename"]
    rules = refused(**section(tmp_path, data))["annotations"].split("\n")
    assert "filename is a file below the folder of images; not so: images[0]" in rules
    assert "holds a list of sentences; not so: the key 'sentences'" in rules
    assert "every entry has raw, a text; not so: images[2].sentences[3]" in rules
    assert "every image has a filename of its own; not so: images[3]" in rules


def test_images_without_captions_are_counted(tmp_path):
    data = karpathy_data(["test", "test"], None)
    for sentence in data["images"][0]["sentences"]:
        sentence["raw"] = " "
    write_images(tmp_path, ["image_1.jpg"])
    records = read_records(EvaluationData(**section(tmp_path, data)))
    assert records.counts["without_captions"] == 1 and records.counts["empty_captions"] == 5
    assert [r.key for r in records.items] == ["image_1.jpg"]
