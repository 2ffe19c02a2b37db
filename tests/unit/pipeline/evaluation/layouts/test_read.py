"""Every layout read from files, subsets, missing images, and all that may be wrong with the files."""

import copy
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.errors import ConfigError
from pipeline.evaluation.config import EvaluationData
from pipeline.evaluation.layouts.read import draw, read_records
from tests.helpers.field_files import (
    coco_data,
    jpeg,
    karpathy_data,
    vqa_data,
    write_images,
    write_json,
)


def problems_of(**settings) -> dict[str, str]:
    """Rule by key of what a section is refused for."""
    with pytest.raises(ConfigError) as caught:
        read_records(EvaluationData(**settings), "evaluation.data")
    return {p.key.removeprefix("evaluation.data."): p.rule for p in caught.value.problems}


@pytest.fixture
def coco(tmp_path):
    data = coco_data(10)
    write_images(tmp_path / "images", [image["file_name"] for image in data["images"]])
    annotations = write_json(tmp_path / "captions.json", data)
    return {"path": str(tmp_path / "images"), "annotations": annotations}


def test_coco_is_known_and_its_images_open_late(coco):
    records = read_records(EvaluationData(**coco))
    assert records.layout == "coco" and len(records) == 10
    assert records.items[3].texts == tuple(f"caption {j} of 3" for j in range(5))
    assert records.items[3].image.open() == jpeg(3)
    assert records.items[3].key == records.items[3].image_key == "103"
    assert records.counts["found"] == records.counts["kept"] == 10


def test_karpathy_is_known_with_and_without_filepath(tmp_path):
    splits = ["train", "restval", "val", "test", "test"]
    for filepath in ("val2014", None):
        folder = tmp_path / str(filepath)
        names = [f"image_{i}.jpg" for i in range(5)]
        write_images(folder / (filepath or ""), names)
        annotations = write_json(folder / "dataset.json", karpathy_data(splits, filepath))
        test = read_records(EvaluationData(path=str(folder), annotations=annotations))
        assert [r.key for r in test.items] == ["image_3.jpg", "image_4.jpg"]
        assert test.items[0].image.open() == jpeg(3)
        assert test.items[0].texts[2] == "Caption 2 of 3."
        both = EvaluationData(path=str(folder), annotations=annotations, split="train+restval")
        assert [r.key for r in read_records(both).items] == ["image_0.jpg", "image_1.jpg"]


def test_karpathy_images_of_coco_lie_in_one_folder_too(tmp_path):
    write_images(tmp_path, ["image_0.jpg"])
    annotations = write_json(tmp_path / "dataset.json", karpathy_data(["test"], "val2014"))
    records = read_records(EvaluationData(path=str(tmp_path), annotations=annotations))
    assert records.items[0].image.name == "image_0.jpg"


@pytest.mark.parametrize(
    "name",
    [
        "COCO_val2014_{:012d}.jpg",
        "val2014/COCO_val2014_{:012d}.jpg",
        "{:012d}.jpg",
        "{}.jpg",
        "{}.png",
        "val2014/{:012d}.jpg",
    ],
)
def test_vqa_is_known_and_finds_its_images(tmp_path, name):
    questions, annotations = vqa_data(6)
    write_images(tmp_path / "images", [name.format(200), name.format(201)])
    section = EvaluationData(
        path=str(tmp_path / "images"),
        questions=write_json(tmp_path / "q.json", questions),
        annotations=write_json(tmp_path / "a.json", annotations),
    )
    records = read_records(section)
    assert records.layout == "vqa" and [r.key for r in records.items] == [
        str(1000 + i) for i in range(6)
    ]
    assert [r.image_key for r in records.items] == ["200"] * 3 + ["201"] * 3
    assert records.items[4].image.open() == jpeg(1)
    assert records.items[4].question == "What is 4?" and records.items[4].kind == "number"
    assert len(records.items[4].texts) == 10 and records.items[4].texts[0] == "no"


def test_image_folder_is_known(tmp_path):
    write_images(tmp_path, ["cat/1.jpg", "cat/deep/2.JPEG", "ant/9.png"])
    records = read_records(EvaluationData(path=str(tmp_path)))
    assert records.layout == "image_folder" and records.class_names == ["ant", "cat"]
    assert [(r.key, r.label, r.texts) for r in records.items] == [
        ("ant/9.png", 0, ("ant",)),
        ("cat/1.jpg", 1, ("cat",)),
        ("cat/deep/2.JPEG", 1, ("cat",)),
    ]
    assert records.items[2].image.open() == jpeg(1)


def test_dataset_folder_is_known(trained_root):
    records = read_records(EvaluationData(path=str(trained_root / "data" / "held_out")))
    assert records.layout == "dataset" and len(records) == 24
    assert records.items[0].image.open().startswith(b"\xff\xd8")
    assert len({r.key for r in records.items}) == 24 and all(r.texts[0] for r in records.items)


def test_held_out_part_and_training_part_are_apart(trained_root):
    path = str(trained_root / "data" / "laion")
    apart = read_records(EvaluationData(path=path, held_out_fraction=0.3))
    every = read_records(EvaluationData(path=path))
    assert 0 < len(apart) < len(every) == 60
    assert {r.key for r in apart.items} < {r.key for r in every.items}
    assert apart.counts["found"] == 60 and apart.counts["in_split"] == len(apart)


def test_smaller_limit_is_part_of_a_larger_one_and_of_the_same_order(coco):
    drawn = {
        limit: [r.key for r in read_records(EvaluationData(**coco, limit=limit)).items]
        for limit in (3, 6, 10, 99)
    }
    assert len(drawn[3]) == 3 and set(drawn[3]) < set(drawn[6]) < set(drawn[10])
    assert drawn[6] == [key for key in drawn[10] if key in drawn[6]] and drawn[99] == drawn[10]
    others = [read_records(EvaluationData(**coco, limit=3, seed=s)).items for s in range(1, 20)]
    assert any([r.key for r in items] != drawn[3] for items in others)
    limited = read_records(EvaluationData(**coco, limit=3))
    assert limited.counts["limited"] == 7 and limited.counts["kept"] == 3


@given(st.lists(st.text(), unique=True), st.integers(1, 50), st.integers(0, 9))
def test_draw_is_a_function_of_the_keys_alone(keys, limit, seed):
    chosen = {keys[i] for i in draw(keys, limit, seed)}
    assert len(chosen) == min(limit, len(keys))
    shuffled = random.sample(keys, len(keys))
    assert {shuffled[i] for i in draw(shuffled, limit, seed)} == chosen


def test_fingerprint_is_of_what_is_asked_not_of_the_place(coco, tmp_path):
    here = read_records(EvaluationData(**coco)).fingerprint
    other = tmp_path / "elsewhere"
    (tmp_path / "images").rename(other)
    assert read_records(EvaluationData(**coco | {"path": str(other)})).fingerprint == here
    assert read_records(EvaluationData(**coco | {"path": str(other)}, limit=9)).fingerprint != here
    data = coco_data(10)
    data["annotations"][7]["caption"] += "!"
    coco["annotations"] = write_json(tmp_path / "changed.json", data)
    assert read_records(EvaluationData(**coco | {"path": str(other)})).fingerprint != here


def test_missing_images_refuse_or_are_counted_and_named(coco, tmp_path):
    (tmp_path / "images" / "COCO_val2014_000000000104.jpg").unlink()
    rule = problems_of(**coco)["path"]
    assert "all but 0 of 10; 1 are not: COCO_val2014_000000000104.jpg" in rule
    assert "all but 0.09 of 10" in problems_of(**coco, max_missing=0.09)["path"]
    records = read_records(EvaluationData(**coco, max_missing=0.1))
    assert records.counts["missing_images"] == records.counts["without_image"] == 1
    assert records.counts["kept"] == len(records) == 9 and "104" not in {
        r.key for r in records.items
    }
    assert records.missing == ["COCO_val2014_000000000104.jpg"]


def test_no_image_at_all_is_refused_whatever_may_be_missing(coco, tmp_path):
    (tmp_path / "empty").mkdir()
    rule = problems_of(**coco | {"path": str(tmp_path / "empty")}, max_missing=1.0)["path"]
    assert "10 are not" in rule and "and more" in rule


def test_missing_image_of_several_questions_counts_once(tmp_path):
    questions, annotations = vqa_data(6)
    write_images(tmp_path, ["200.jpg"])
    section = EvaluationData(
        path=str(tmp_path),
        questions=write_json(tmp_path / "q.json", questions),
        annotations=write_json(tmp_path / "a.json", annotations),
        max_missing=0.5,
    )
    counts = read_records(section).counts
    assert counts["missing_images"] == 1 and counts["without_image"] == 3 and counts["kept"] == 3


def test_unusable_samples_of_a_dataset_count_as_missing(tmp_path):
    from tests.helpers.dataset import write_dataset

    def sample(row):
        image = {} if row == 3 else {"jpg": jpeg(row)}
        return image | {"txt": b" " if row == 5 else f"text {row}".encode()}

    write_dataset(tmp_path / "set", [6, 4], sample)
    assert "all but 0 of 10; 2 are not" in problems_of(path=str(tmp_path / "set"))["path"]
    records = read_records(EvaluationData(path=str(tmp_path / "set"), max_missing=0.2))
    assert records.counts["unusable"] == 2 and len(records) == 8
    assert [m.split(": ")[1] for m in records.missing] == ["without image", "without text"]
    assert records.items[0].texts == ("text 0",) and records.items[0].image.open() == jpeg(0)


def test_documents_are_counted_and_a_folder_of_them_refused(tmp_path):
    from tests.helpers.dataset import write_dataset

    def document(row):
        return {"0.txt": b"before", "1.jpg": jpeg(row), "2.jpg": jpeg(row + 50)}

    write_dataset(tmp_path / "set", [4], document)
    assert "'documents': 4" in problems_of(path=str(tmp_path / "set"))["path"]
    write_dataset(
        tmp_path / "mixed", [4], lambda r: document(r) if r else {"jpg": jpeg(r), "txt": b"t"}
    )
    records = read_records(EvaluationData(path=str(tmp_path / "mixed")))
    assert records.counts["documents"] == 3 and len(records) == 1


def test_file_of_another_kind_is_named_with_what_was_seen(coco, tmp_path):
    for layout, data, seen in (
        ("coco", karpathy_data(["test"]), "a Karpathy split"),
        ("karpathy", coco_data(1), "COCO captions"),
        ("coco", vqa_data(1)[1], "VQAv2 annotations"),
        ("karpathy", vqa_data(1)[0], "VQAv2 questions"),
        ("auto", {"annotations": [{"bbox": [], "segmentation": []}]}, "COCO instances"),
        ("auto", {"epochs": 3, "model": "x"}, "an object with the keys 'epochs', 'model'"),
        ("coco", {}, "an empty object"),
    ):
        coco["annotations"] = write_json(tmp_path / "other.json", data)
        rule = problems_of(**coco, layout=layout)["annotations"]
        assert rule.startswith("holds ") and rule.endswith(f"seen: {seen}"), (layout, rule)


def test_vqa_files_swapped_are_both_named(tmp_path):
    questions, annotations = vqa_data(3)
    found = problems_of(
        path=str(tmp_path),
        questions=write_json(tmp_path / "q.json", annotations),
        annotations=write_json(tmp_path / "a.json", questions),
    )
    assert found["questions"] == "holds VQAv2 questions; seen: VQAv2 annotations"
    assert found["annotations"] == "holds VQAv2 annotations; seen: VQAv2 questions"


def test_vqa_without_questions_or_annotations_is_refused(tmp_path):
    questions, annotations = vqa_data(3)
    a, q = write_json(tmp_path / "a.json", annotations), write_json(tmp_path / "q.json", questions)
    rule = "is named for layout vqa"
    assert problems_of(path=str(tmp_path), annotations=a) == {"questions": rule}
    assert problems_of(path=str(tmp_path), questions=q) == {"annotations": rule}
    both = problems_of(path=str(tmp_path), layout="vqa")
    assert both == {"annotations": rule, "questions": rule}


def test_settings_that_a_layout_does_not_look_at_are_refused(coco, tmp_path):
    found = problems_of(**coco, split="val", held_out_fraction=0.1, bitmaps=["x"])
    assert set(found) == {"split", "held_out_fraction", "bitmaps"}
    assert found["split"] == "is not set for layout coco, which has no use for it"


def test_everything_wrong_is_told_at_once(tmp_path):
    (tmp_path / "a.json").write_bytes(b"PK\x03\x04rest")
    found = problems_of(
        path=str(tmp_path / "nowhere"),
        annotations=str(tmp_path / "a.json"),
        questions=str(tmp_path / "q.json"),
    )
    assert found["path"] == "is a folder that is there"
    assert found["annotations"] == "holds JSON; seen: a zip archive"
    assert found["questions"] == "is a file that can be read (No such file or directory)"
    auto = problems_of(path=str(tmp_path / "a.json"), annotations=str(tmp_path / "a.json"))
    assert auto == {"path": "is a folder", "annotations": "holds JSON; seen: a zip archive"}


def test_folder_of_no_layout_is_named_with_what_was_seen(tmp_path):
    write_images(tmp_path, ["1.jpg", "2.jpg"])
    rule = problems_of(path=str(tmp_path))["path"]
    assert rule.endswith("a folder for each class; seen: 2 files, such as 1.jpg")
    assert problems_of(path=str(tmp_path / "no"))["path"].endswith("nothing is there")
    rule = problems_of(path=str(tmp_path), layout="image_folder")["path"]
    assert rule == "holds a folder for each class; seen: 2 images and no folder"


def test_images_behind_a_url_are_read(coco):
    import fsspec

    files = fsspec.filesystem("memory")
    name = "COCO_val2014_000000000100.jpg"
    files.pipe(f"/evaluation/{name}", jpeg(0))
    records = read_records(
        EvaluationData(**coco | {"path": "memory://evaluation"}, max_missing=0.9)
    )
    assert [r.image.open() for r in records.items] == [jpeg(0)]
    assert problems_of(**coco | {"path": "memory://nothing"})["path"].startswith("is a folder")
    rule = problems_of(path="memory://evaluation", layout="image_folder")["path"]
    assert rule == "is a folder on this machine, for layout image_folder"


def test_unknown_layout_is_refused_by_the_section():
    with pytest.raises(ValueError, match="'auto', 'coco', 'karpathy', 'vqa', 'image_folder'"):
        EvaluationData(path="x", layout="pascal")


def _places(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(item, (*path, key))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**400),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000, "\ud800/b", "\ud800"]),
    st.just([]),
    st.just({}),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["coco", "karpathy", "questions", "annotations"]), st.data())
def test_damaged_files_give_records_or_a_config_error(tmp_path, kind, data):
    questions, annotations = vqa_data(4)
    files = {"coco": coco_data(3, 2), "karpathy": karpathy_data(["test", "val"])}
    files |= {"questions": questions, "annotations": annotations}
    value = copy.deepcopy(files[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([*_places(value)][1:] or [("x",)]))
        holder = value
        for key in place[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()) and isinstance(holder, dict):
            holder.pop(place[-1], None)
        else:
            holder[place[-1]] = data.draw(JUNK)
    files[kind] = value
    paths = {name: tmp_path / f"{name}.json" for name in files}
    for name, path in paths.items():
        path.write_text(json.dumps(files[name]))
    write_images(tmp_path / "images", ["200.jpg", "201.jpg", "image_0.jpg"])
    write_images(tmp_path / "images", [i["file_name"] for i in coco_data(3)["images"]])
    section = {"path": str(tmp_path / "images"), "max_missing": 0.9}
    if kind in ("coco", "karpathy"):
        section |= {"layout": kind, "annotations": str(paths[kind])}
    else:
        section |= {"questions": str(paths["questions"]), "annotations": str(paths["annotations"])}
    try:
        records = read_records(EvaluationData(**section))
    except ConfigError as error:
        assert str(error)
    else:
        assert records.items and len({r.key for r in records.items}) == len(records)
        assert all(r.texts and all(isinstance(t, str) for t in r.texts) for r in records.items)
        assert all(r.image.open() for r in records.items)
        assert sum(records.counts.values()) > 0
