"""Sections `optim` and `engine`, and the entries of `train.unfreeze`."""

import re
from typing import Literal

from pydantic import Field, field_validator

from pipeline.section import Section


class OptimConfig(Section):
    name: Literal["adamw", "adamw_8bit", "lion_8bit"] = Field("adamw_8bit", description="optimizer")
    min_8bit_numel: int = Field(
        4096, ge=1, description="parameters with fewer elements keep 32-bit moments"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(20, ge=0, description="steps of linear warm-up")
    schedule: Literal["cosine", "constant", "wsd"] = Field(
        "cosine", description="after the warm-up; wsd: constant, then linear to 0 at the end"
    )
    decay_steps: int = Field(0, ge=0, description="last steps over which wsd goes to 0")
    weight_decay: float = Field(0.1, ge=0, description="on matrices outside the resampler only")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.98, ge=0, lt=1, description="decay of the second moment")
    clip_norm: float = Field(1.0, gt=0, description="largest global gradient norm")


class UnfreezeConfig(Section):
    step: int = Field(ge=0, description="trained from this step on")
    parameters: str = Field(
        description="names of tower parameters, as a regular expression that matches them whole"
    )
    lr_scale: float = Field(1.0, gt=0, description="of their learning rate against optim.lr")

    @field_validator("parameters")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is a regular expression ({error})") from None
        return value


class EngineConfig(Section):
    strategy: str = Field("zero2", description="name of a file in deepspeed_configs/")
    expert_parallel: int = Field(1, ge=1, description="ranks over which the experts are divided")
