"""What a person is told when their input cannot be used.

Raised everywhere but in model/; pipeline/cli/main.py turns them into exit codes.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, what stands there, the rule it breaks, the remedy."""

    key: str
    value: object
    rule: str
    remedy: str


class ConfigError(ValueError):
    """The run cannot start as configured (exit code 2); carries every problem found."""

    def __init__(self, problems: list[Problem]):
        if not problems:
            raise ValueError("a ConfigError needs at least one problem")
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"{count} in the configuration"]
        for p in problems:
            lines += [f"  {p.key} = {p.value!r}", f"    rule: {p.rule}", f"    do:   {p.remedy}"]
        super().__init__("\n".join(lines))


class IngestError(RuntimeError):
    """An ingest cannot go on, for a cause outside its configuration (exit code 4)."""


class DataBudgetError(RuntimeError):
    """More samples were unusable than the budget allows (exit code 3)."""
