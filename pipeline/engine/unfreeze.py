"""Parts of the frozen towers that are trained from some step on."""

import re

from torch import nn

from data_prep.errors import ConfigError, Problem
from pipeline.engine.config import UnfreezeConfig

ENTRY = "unfrozen_by"  # attribute of a parameter: number of its entry in train.unfreeze


def unfreeze(module: nn.Module, entries: list[UnfreezeConfig], step: int) -> set[str]:
    """Let the parameters of all entries that have begun by `step` be trained.

    Each entry gets parameter groups of its own: their moments have seen fewer steps.

    Returns:
        their names.

    Raises:
        ConfigError: an entry, begun or not, names no parameter, or one that is trained anyway.
    """
    problems, names = [], set()
    frozen = {n: p for n, p in module.named_parameters() if not p.requires_grad}
    for number, entry in enumerate(entries):
        pattern = re.compile(entry.parameters)
        matched = {n: p for n, p in frozen.items() if pattern.fullmatch(n) and n not in names}
        if not matched:
            rule = "matches names of frozen parameters that no entry before it has"
            examples = ", ".join(list(frozen)[:2])
            remedy = f"correct the expression; some of their names: {examples}"
            key = f"train.unfreeze.{number}.parameters"
            problems.append(Problem(key, entry.parameters, rule, remedy))
        elif entry.step <= step:
            for name, parameter in matched.items():
                parameter.requires_grad_(True)
                setattr(parameter, ENTRY, number)
                names.add(name)
    if problems:
        raise ConfigError(problems)
    return names


def next_phase(entries: list[UnfreezeConfig], step: int, steps: int) -> int:
    """The step at which the next entry begins, or the last step of the run."""
    return min([entry.step for entry in entries if entry.step > step] + [steps])
