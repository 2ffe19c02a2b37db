"""What suites are asked about: the records that section `evaluation` names, or those a run holds out."""

import hashlib
import json
from dataclasses import dataclass, replace

from data_prep.errors import ConfigError, Problem
from pipeline.config import RunConfig
from pipeline.evaluation.check import suite_problems
from pipeline.evaluation.config import EvaluationConfig, EvaluationData
from pipeline.evaluation.layouts.read import SHOWN, draw, read_records
from pipeline.evaluation.layouts.record import ImageSource, Records
from pipeline.evaluation.results import DataIdentity
from pipeline.evaluation.suites.classification import check_classes
from pipeline.evaluation.suites.fewshot import check_shots
from pipeline.evaluation.suites.vqa import check_questions


@dataclass(frozen=True)
class Task:
    """What a suite is about.

    Attributes:
        data: sections that were read.
        records: of all of them.
        pool: examples of suite fewshot, where they are others.
    """

    data: list[EvaluationData]
    records: Records
    pool: Records | None = None

    @property
    def images(self) -> dict[str, ImageSource]:
        return {record.key: record.image for record in self.records.items}

    @property
    def identity(self) -> DataIdentity:
        """For the results."""
        place = " + ".join(section.path for section in self.data)
        section = self.data[0].model_copy(update={"path": place})
        return DataIdentity.of(section, self.records)


def prepare_task(config: RunConfig, suites: list[str], *, in_training: bool = False) -> Task:
    """`read_task`, and refuse what does not make the suites; no model is needed for it.

    Raises:
        ConfigError: with the problems of all suites, or of the files.
    """
    if problems := suite_problems(suites, config):
        raise ConfigError(problems)
    task = read_task(config, in_training=in_training)
    check_task(task, suites, config.evaluation)
    return task


def prepare_training_task(config: RunConfig) -> Task | None:
    """What all evaluations of a training are about, read once, before it begins; None where it has none.

    Raises:
        ConfigError: as of `prepare_task`.
    """
    if not config.evaluation.every_steps:
        return None
    return prepare_task(config, config.evaluation.suites, in_training=True)


def read_task(config: RunConfig, *, in_training: bool = False) -> Task:
    """The records; drawn by key where they are more than may be.

    Args:
        config: of the run.
        in_training: at most `evaluation.max_samples` of `evaluation.data` too, which is else taken
            whole, but for its own limit; of a run's own held-out samples there are never more.

    Raises:
        ConfigError: they cannot be read.
    """
    section = config.evaluation
    most, pool = section.max_samples, None
    if section.data is not None:
        limit = min(section.data.limit or most, most) if in_training else section.data.limit
        data = {"": section.data.model_copy(update={"limit": limit})}
        records = read_records(data[""])
    else:
        data = held_out_data(config, most)
        parts = {name: read_records(part, f"data.{name}") for name, part in data.items()}
        records = parts.popitem()[1] if len(parts) == 1 else join(parts, most)
    if section.demonstrations is not None:
        pool = read_records(section.demonstrations, "evaluation.demonstrations")
    return Task([*data.values()], records, pool)


def held_out_data(config: RunConfig, limit: int) -> dict[str, EvaluationData]:
    """What training left out: sections by name of their source."""
    data = config.data
    if data.held_out is not None:
        held_out = {"path": data.held_out.path, "bitmaps": data.held_out.bitmaps}
        return {"held_out": EvaluationData(layout="dataset", limit=limit, **held_out)}
    return {
        f"sources.{name}": EvaluationData(
            layout="dataset",
            path=source.path,
            bitmaps=source.bitmaps,
            held_out_fraction=data.held_out_fraction,
            limit=limit,
        )
        for name, source in data.sources.items()
    }


def join(parts: dict[str, Records], most: int) -> Records:
    """Records of several sources as one; their keys begin with the name of the source, since sources may
    have some in common.

    Args:
        parts: by name.
        most: how many are drawn of all, by key.
    """
    items = [
        replace(r, key=f"{name}/{r.key}", image_key=f"{name}/{r.image_key}")
        for name, records in parts.items()
        for r in records.items
    ]
    drawn = draw([record.key for record in items], most, 0)
    counts: dict[str, int] = {}
    for records in parts.values():
        for what, count in records.counts.items():
            counts[what] = counts.get(what, 0) + count
    counts["limited"] += len(items) - len(drawn)
    counts["kept"] = len(drawn)
    named = [[name, records.fingerprint] for name, records in parts.items()]
    text = json.dumps([named, [items[n].key for n in drawn]])
    return Records(
        "dataset",
        [items[n] for n in drawn],
        counts,
        [f"{name}/{m}" for name, records in parts.items() for m in records.missing][:SHOWN],
        fingerprint=hashlib.sha256(text.encode()).hexdigest()[:16],
    )


def check_task(task: Task, suites: list[str], section: EvaluationConfig) -> None:
    """Refuse records that do not make the suites, before the model is asked anything.

    Raises:
        ConfigError: with the problems of all suites.
    """
    problems: list[Problem] = []
    pool = (task.pool or task.records).items
    checks = {
        "vqa": lambda: check_questions(task.records),
        "classification": lambda: check_classes(task.records),
        "fewshot": lambda: check_shots(task.records, pool, section),
    }
    for suite in (s for s in checks if s in suites):
        try:
            checks[suite]()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
