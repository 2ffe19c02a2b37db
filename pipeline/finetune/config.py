"""Entries of section `train` for fine-tuning."""

from typing import Literal

from pydantic import Field

from pipeline.section import Section


class LoraConfig(Section):
    targets: str = Field(
        r"gated_blocks\.\d+\.attention\.to_(q|kv|out)",
        description="names of linear layers, as a regular expression that matches them whole; those of "
        "the language model begin with language., those of the resampler with media_encoders.",
    )
    rank: int = Field(8, ge=1, description="of the update")
    alpha: float = Field(16.0, gt=0, description="the update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapters' input")


class EarlyStopConfig(Section):
    metric: str = Field(
        "held_out_loss",
        description="held_out_loss, or evaluation/{suite}/{figure} of an evaluation in training",
    )
    patience: int = Field(3, ge=1, description="measurements without a better one, then it stops")
    min_delta: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="what is less than this better is not better"
    )
    mode: Literal["min", "max"] = Field("min", description="whether less or more is better")
