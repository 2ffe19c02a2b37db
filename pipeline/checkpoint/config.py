"""Section `checkpoint`."""

from pydantic import Field

from pipeline.section import Section


class CheckpointConfig(Section):
    every_steps: int = Field(500, ge=1, description="steps between two checkpoints")
    folder: str | None = Field(
        None, description="path or URL (s3://bucket/run); null: checkpoints/ in the run's folder"
    )
    keep_last: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_every_steps: int = Field(0, ge=0, description="keep those of every so many steps; 0: none")
    keep_best: bool = Field(
        True, description="keep that of the lowest held-out loss, or train.early_stop's best"
    )
    timeout_seconds: int = Field(1800, ge=1, description="longest wait for the slowest rank's part")
    failures: int = Field(1, ge=0, description="failed ones in a row that the run survives")
