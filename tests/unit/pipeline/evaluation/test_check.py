"""What is refused before anything is read."""

import pytest

from data_prep.errors import ConfigError
from pipeline.config import load_config
from pipeline.evaluation.check import suite_problems, training_problems
from pipeline.run_check import check_run


def keys(problems):
    return [problem.key for problem in problems]


def test_captions_make_no_questions_and_no_classes():
    problems = suite_problems(["captioning", "vqa", "classification"], load_config("demo"))
    assert keys(problems) == ["evaluation.data"] * 2
    for problem, suite, remedy in zip(
        problems, ("vqa", "classification"), ("VQAv2", "each class"), strict=True
    ):
        assert f"suite {suite}: captions alone" in problem.rule and remedy in problem.remedy


@pytest.mark.parametrize(
    ("suite", "layout", "fits"),
    [
        ("vqa", "vqa", True),
        ("vqa", "auto", True),
        ("vqa", "coco", False),
        ("classification", "image_folder", True),
        ("classification", "dataset", False),
        ("retrieval", "coco", True),
    ],
)
def test_a_layout_that_makes_no_suite_is_named(suite, layout, fits):
    config = load_config("demo", [f"evaluation.data={{path: x, layout: {layout}}}"])
    problems = suite_problems([suite], config)
    assert keys(problems) == ([] if fits else ["evaluation.data.layout"])


def test_suites_that_training_cannot_run_are_refused_by_config_check():
    config = load_config("demo", ["evaluation={every_steps: 5, suites: [speed, vqa]}"])
    with pytest.raises(ConfigError) as error:
        check_run(config, 2)
    told = str(error.value)
    assert "has no speed where evaluation.every_steps is set" in told
    assert "evaluation.data" in told and "suite vqa" in told
    quiet = load_config("demo", ["evaluation={every_steps: 0, suites: [speed, vqa]}"])
    assert training_problems(quiet) == []
    check_run(quiet, 2)


def test_a_tower_alone_is_not_evaluated_in_training():
    config = load_config("demo_language", ["evaluation.every_steps=5"])
    (problem,) = training_problems(config)
    assert problem.key == "evaluation.every_steps"
    assert "is 0 where objective=language" in problem.rule
