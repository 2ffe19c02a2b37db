import pytest

from data_prep.errors import ConfigError
from pipeline.evaluation.config import EvaluationData
from pipeline.evaluation.layouts.read import read_records


@pytest.fixture
def refused():
    """Rules that a section breaks, by the setting's name; several of one joined by a line break."""

    def rules(**settings) -> dict[str, str]:
        with pytest.raises(ConfigError) as caught:
            read_records(EvaluationData(**settings), "evaluation.data")
        found: dict[str, list[str]] = {}
        for problem in caught.value.problems:
            assert problem.remedy
            found.setdefault(problem.key.removeprefix("evaluation.data."), []).append(problem.rule)
        return {key: "\n".join(rules) for key, rules in found.items()}

    return rules
