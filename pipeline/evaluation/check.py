"""What section `evaluation` cannot mean, told before anything is read. Imports nothing slow."""

from data_prep.errors import Problem
from pipeline.config import RunConfig

# Suite to the layouts that make one, and what to name for it.
_LAYOUTS = {
    "vqa": ("vqa", "questions and annotations in VQAv2's layout"),
    "classification": ("image_folder", "a folder with a folder of images for each class"),
}


def suite_problems(suites: list[str], config: RunConfig) -> list[Problem]:
    """Suites that the named data do not make."""
    data, problems = config.evaluation.data, []
    for suite in (s for s in suites if s in _LAYOUTS):
        layout, needed = _LAYOUTS[suite]
        if data is None:
            rule = f"is set for suite {suite}: captions alone do not make one"
            problems.append(Problem("evaluation.data", None, rule, f"name {needed}"))
        elif data.layout not in ("auto", layout):
            rule = f"is {layout} for suite {suite}"
            problems.append(Problem("evaluation.data.layout", data.layout, rule, f"name {needed}"))
    return problems


def training_problems(config: RunConfig) -> list[Problem]:
    """What cannot be evaluated within training, where `every_steps` asks for it."""
    section = config.evaluation
    if not section.every_steps:
        return []
    if config.objective != "flamingo":
        rule = f"is 0 where objective={config.objective}: suites ask a whole model"
        key = "evaluation.every_steps"
        return [Problem(key, section.every_steps, rule, f"set {key}=0")]
    problems = suite_problems(section.suites, config)
    if "speed" in section.suites:
        rule = "has no speed where evaluation.every_steps is set: it is of a model that nothing runs beside"
        remedy = "take it out, and run roseate evaluate --suite speed afterwards"
        problems.append(Problem("evaluation.suites", section.suites, rule, remedy))
    return problems
