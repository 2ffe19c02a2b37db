"""Which records suites are asked about."""

from dataclasses import replace

import pytest

from data_prep.errors import ConfigError
from pipeline.data.dataset import Dataset
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.layouts.record import Records
from pipeline.evaluation.task import Task, check_task, join, prepare_training_task, read_task
from tests.helpers.tiny import tiny_config
from tests.unit.pipeline.evaluation.suites.conftest import captions, write_coco

BOTH = ("data.held_out=null", "data.held_out_fraction=0.3")


def keys(task):
    return [record.key for record in task.records.items]


def test_the_runs_own_held_out_samples_are_taken_without_data(trained_root):
    task = read_task(tiny_config(trained_root))
    held_out = Dataset(f"{trained_root}/data/held_out", "data.held_out")
    all_keys = {held_out.read(n).key for n in range(len(held_out))}
    assert len(task.records) == 16 < len(all_keys) and set(keys(task)) <= all_keys
    assert task.records.counts["limited"] == 8
    assert keys(read_task(tiny_config(trained_root))) == keys(task)


def test_held_out_samples_of_all_sources_are_taken(trained_root):
    config = tiny_config(trained_root, *BOTH, "evaluation.max_samples=1000")
    task = read_task(config)
    for name in ("laion", "cc12m"):
        source = config.data.sources[name]
        dataset = Dataset(source.path, name, held_out_fraction=0.3, held_out=True)
        expected = {f"sources.{name}/{dataset.read(n).key}" for n in range(len(dataset))}
        assert {k for k in keys(task) if k.startswith(f"sources.{name}/")} == expected
    assert len(set(keys(task))) == len(task.records) == task.records.counts["kept"]
    assert task.identity.path.count(" + ") == 1


def test_fewer_than_there_are_come_of_every_source(trained_root):
    config = tiny_config(trained_root, *BOTH, "evaluation.max_samples=16")
    task = read_task(config)
    found = {key.split("/")[0] for key in keys(task)}
    assert len(task.records) == 16 and found == {"sources.laion", "sources.cc12m"}
    counts = task.records.counts
    assert counts["limited"] + counts["kept"] == counts["in_split"]


def test_sources_with_keys_in_common_stay_apart():
    one, two = captions(3), captions(3)
    counts = {"limited": 0, "kept": 3}
    joined = join({"a": replace(one, counts=counts), "b": replace(two, counts=counts)}, 6)
    task = Task([], joined)
    assert len(task.images) == 6 and len({r.image_key for r in joined.items}) == 6
    assert task.images["b/1"].open() == two.items[1].image.open()
    assert joined.counts == {"limited": 0, "kept": 6}
    assert joined.fingerprint != join({"a": replace(one, counts=counts)}, 3).fingerprint


def test_named_files_are_taken_whole_but_for_their_limit(trained_root, tmp_path):
    few = ("evaluation.max_samples=4", write_coco(tmp_path, [f"a {n}" for n in range(10)]))
    config = tiny_config(trained_root, *few)
    assert len(read_task(config).records) == 10
    assert len(read_task(config, in_training=True).records) == 4
    limited = tiny_config(trained_root, *few, "evaluation.data.limit=6")
    assert len(read_task(limited).records) == 6
    assert len(read_task(limited, in_training=True).records) == 4
    less = tiny_config(trained_root, *few, "evaluation.data.limit=3")
    assert len(read_task(less, in_training=True).records) == 3


def test_all_suites_that_records_do_not_make_are_told_at_once():
    task = Task([], captions(4))
    section = EvaluationConfig(shots=[0, 8])
    check_task(task, ["captioning", "perplexity", "retrieval"], section)
    with pytest.raises(ConfigError) as error:
        check_task(task, ["captioning", "vqa", "classification", "fewshot"], section)
    assert [p.key for p in error.value.problems] == [
        "evaluation.data",
        "evaluation.data",
        "evaluation.shots",
    ]
    check_task(replace(task, pool=Records("coco", captions(9).items, {})), ["fewshot"], section)


def test_training_does_not_begin_with_files_that_its_evaluation_misses(trained_root, tmp_path):
    gone = f"evaluation.data={{path: {tmp_path}/gone, annotations: {tmp_path}/gone.json}}"
    config = tiny_config(trained_root, gone, "evaluation.every_steps=2")
    with pytest.raises(ConfigError, match="gone.json"):
        prepare_training_task(config)
    off = tiny_config(trained_root, gone, "evaluation.every_steps=0")
    assert prepare_training_task(off) is None


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.held_out.path={gone}", "data.held_out.path"),
        ("data.held_out.bitmaps=[gone]", "data.held_out.bitmaps"),
        ("evaluation.data={path: {gone}, layout: dataset}", "evaluation.data.path"),
        ("evaluation.demonstrations={path: {gone}}", "evaluation.demonstrations.path"),
    ],
)
def test_what_cannot_be_read_is_named_as_it_is_set(trained_root, tmp_path, override, key):
    config = tiny_config(trained_root, override.replace("{gone}", f"{tmp_path}/gone"))
    with pytest.raises(ConfigError) as error:
        read_task(config)
    assert [p.key for p in error.value.problems] == [key]
