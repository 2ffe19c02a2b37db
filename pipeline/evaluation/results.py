"""What an evaluation writes: one JSON schema for the results of every suite; page.py shows it."""

import json
import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data_prep.errors import ConfigError, Problem
from data_prep.storage import write_file
from pipeline.evaluation.figure_names import figure_better
from pipeline.evaluation.layouts.record import Records
from pipeline.evaluation.metrics.bootstrap import Interval

SCHEMA_VERSION = 1


class Part(BaseModel):
    """Of the JSON; NaN is null there and None here."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(Part):
    """One number with its interval."""

    name: str = Field(description="of the metric, such as cider_d or recall_1")
    condition: str = Field(
        "", description="how it differs from plain use: zero_image, shots_4, minus_zero_image"
    )
    value: float | None
    low: float | None = Field(None, description="bound of the interval")
    high: float | None = None
    unit: str = Field("", description="nats, ms, ...; empty for a share or a score")
    better: Literal["higher", "lower"] = "higher"
    samples: int = Field(ge=0, description="that it is about")

    @field_validator("value", "low", "high")
    @classmethod
    def _number(cls, value: float | None) -> float | None:
        return value if value is None or math.isfinite(value) else None

    @property
    def key(self) -> str:
        """The one name of the number, also in MLflow."""
        return f"{self.name}_{self.condition}" if self.condition else self.name

    @classmethod
    def of(
        cls, name: str, interval: Interval, samples: int, condition: str = "", **more
    ) -> "Figure":
        """Out of what the bootstrap gives."""
        bounds = {"value": interval.value, "low": interval.low, "high": interval.high}
        more = {"better": figure_better(name)} | more
        return cls(name=name, condition=condition, samples=samples, **bounds, **more)


class Row(Part):
    """One sample."""

    key: str
    image: str = Field("", description="where its image lies")
    question: str | None = None
    truth: list[str] = Field(description="captions, answers, or the name of the class")
    said: dict[str, str] = Field(
        default_factory=dict, description="text by condition; '' is plain use"
    )
    scores: dict[str, float | None] = Field(
        default_factory=dict, description="figures of this sample by Figure.key"
    )

    @field_validator("scores")
    @classmethod
    def _numbers(cls, scores: dict) -> dict:
        return {k: v if v is not None and math.isfinite(v) else None for k, v in scores.items()}


class CheckpointIdentity(Part):
    """Whose weights were evaluated."""

    path: str
    run: str = Field(description="name of the run")
    step: int
    run_id: str | None = Field(None, description="MLflow run that trained it")


class DataIdentity(Part):
    """What it was evaluated on."""

    layout: str
    path: str
    annotations: str | None = None
    fingerprint: str = Field("", description="of the annotations; equal wherever the files lie")
    counts: dict[str, int] = Field(default_factory=dict, description="see Records.counts")
    missing: list[str] = Field(default_factory=list, description="images not there, the first ones")

    @property
    def place(self) -> str:
        """What names it to a person."""
        return self.annotations or self.path

    @classmethod
    def of(cls, config, records: Records) -> "DataIdentity":
        """Of a section `EvaluationData` and what was read by it."""
        return cls(
            layout=records.layout,
            path=config.path,
            annotations=config.annotations,
            fingerprint=records.fingerprint,
            counts=records.counts,
            missing=records.missing,
        )


class Results(Part):
    """The results of one suite."""

    schema_version: Literal[1] = SCHEMA_VERSION
    suite: str
    checkpoint: CheckpointIdentity
    data: DataIdentity | None = None
    settings: dict = Field(default_factory=dict, description="what makes figures comparable")
    figures: list[Figure]
    wrong_by: str = Field(
        "",
        description="Figure.key of the rows by which a sample is wrong; default the first figure",
    )
    hard_by: str = Field(
        "", description="key of the rows' scores by which a sample is hard, such as nats_per_token"
    )
    rows: list[Row] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list, description="to be read with the figures")
    seconds: float | None = None

    def save(self, path: Path) -> None:
        """Writes the JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False)
        write_file(path, f"{text}\n".encode())

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Reads what `save` wrote.

        Raises:
            ConfigError: there is no such file, or something else in it.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            rule = f"holds the results of an evaluation: {error}"
            remedy = "name a file that roseate evaluate wrote"
            raise ConfigError([Problem("results", str(path), rule, remedy)]) from None
