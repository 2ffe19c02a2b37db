"""Section `tracking` of a run."""

from typing import Literal

from pydantic import Field, PositiveFloat

from pipeline.section import Section


class TrackingConfig(Section):
    uri: str = Field("sqlite:///{root}/mlflow.db", description="MLflow tracking URI; empty: none")
    experiment: str = Field("roseate", description="MLflow experiment")
    wait_seconds: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="at the end of a run, for what MLflow has not taken yet; the rest stays on disk",
    )
    system_metrics_seconds: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="between two looks at every node; 0: none"
    )
    model: str | None = Field(
        None,
        description="registered model that the last checkpoint becomes a version of; null: "
        "{experiment}.{name}; empty: none",
    )
    alias: str = Field("newest", description="of that version")
    peak_tflops: PositiveFloat | Literal["auto", "measured"] = Field(
        "auto",
        description="peak of one device, for the MFU; auto: the data sheet of a known GPU, else no MFU; "
        "measured: the fastest product of two matrices at the start",
    )
