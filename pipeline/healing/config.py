"""Section `healing`: what a run does by itself about bad batches, diverging losses and hung ranks."""

from pydantic import Field

from pipeline.section import Section


class HealingConfig(Section):
    skip_budget: int = Field(
        10,
        ge=0,
        description="steps skipped as not finite among the last skip_window; one more ends",
    )
    skip_window: int = Field(1000, ge=1, description="steps over which skip_budget is counted")
    rollback_budget: int = Field(
        5, ge=0, description="returns to an earlier checkpoint in the whole run; one more ends it"
    )
    spike_z: float = Field(
        8.0, ge=0, description="robust standard deviations that make a loss an outlier; 0: off"
    )
    spike_steps: int = Field(
        8, ge=1, description="outliers in a row that make a spike; fewer are left alone"
    )
    spike_window: int = Field(
        128, ge=16, le=4096, description="losses by which the next one is judged"
    )
    spike_margin: int = Field(
        20, ge=0, description="steps before a spike in which a checkpoint is not trusted"
    )
    hang_seconds: float = Field(
        600.0, ge=0, description="without progress on any one rank until all are ended; 0: never"
    )
