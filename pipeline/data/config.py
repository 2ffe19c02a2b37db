"""The section `data` of a run: which datasets, how they are mixed, read and laid out."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.section import Section


class MixtureSource(Section):
    path: str = Field(
        description="dataset folder that `roseate ingest` or `roseate index` wrote, or its URL"
    )
    weight: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="relative number of samples drawn from this source",
    )
    bitmaps: list[str] = Field(
        default_factory=list, description="selections in its bitmaps/; a sample must be in all"
    )


class ImageInputConfig(Section):
    """Stored images to the square that the encoder takes; random parts in training only."""

    fit: Literal["crop", "squash", "pad"] = Field(
        "crop",
        description="crop: the shorter side fills the square, the middle is kept; squash: both sides "
        "fill it; pad: the longer side fills it, the rest is white",
    )
    crop_area: float = Field(
        1.0,
        gt=0,
        le=1,
        description="smallest share of the square that a random crop keeps; 1: no random crop",
    )
    flip_ratio: float = Field(
        0.0, ge=0, le=1, description="images mirrored; captions may speak of left and right"
    )
    drop_ratio: float = Field(0.0, ge=0, le=1, description="images made black")

    @model_validator(mode="after")
    def _crop(self) -> "ImageInputConfig":
        if self.crop_area < 1 and self.fit != "crop":
            raise ValueError(f"crop_area below 1 goes with fit=crop, not with fit={self.fit}")
        return self


class BudgetConfig(Section):
    """Samples that cannot be used are replaced and listed; beyond this the run stops, exit code 3."""

    in_a_row: int = Field(16, ge=1, description="samples that stand in for one another, at most")
    percent: float = Field(
        1.0, ge=0, le=100, description="of all samples of the run, judged from 1,000 on"
    )


class RemoteConfig(Section):
    """How shards in an object store are read; a local dataset folder needs none of this."""

    read: Literal["shards", "ranges"] = Field(
        "shards", description="shards: each once, whole, into the cache; ranges: samples alone"
    )
    cache: str = Field("{root}/cache", description="folder on a disk of the node")
    cache_bytes: int = Field(100_000_000_000, ge=1, description="what the cache may hold, bytes")
    ahead_steps: int = Field(
        8, ge=0, description="steps that shards are fetched ahead of their use"
    )


class DataConfig(Section):
    sources: dict[str, MixtureSource] = Field(description="training datasets, mixed by weight")
    held_out: MixtureSource | None = Field(
        None, description="dataset folder never trained on; without it held_out_fraction applies"
    )
    held_out_fraction: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="share of distinct images kept out of training, by image hash",
    )
    max_text_tokens: int = Field(
        32, ge=5, description="tokens per text, marks included; longer is cut"
    )
    max_images: int = Field(8, ge=1, description="images per interleaved document; cut before more")
    pack_tokens: int | None = Field(
        None,
        ge=8,
        description="longest row of several texts; null: one text a row, padded to the longest",
    )
    image: ImageInputConfig = Field(default_factory=ImageInputConfig)
    features: str | None = Field(
        None,
        description="folder of features that `roseate features` wrote, e.g. {root}/features, read in "
        "training in place of the images; null: the tower runs in every step",
    )
    lanes: int = Field(256, ge=1, description="places of a source that are read at the same time")
    shuffle_block: int = Field(
        4096, ge=1, description="samples of a lane that are shuffled among themselves"
    )
    workers: int = Field(
        0, ge=0, description="processes per rank that make batches; 0: a thread of the rank"
    )
    prefetch_batches: int = Field(4, ge=1, description="micro-batches ready per worker")
    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    remote: RemoteConfig = Field(default_factory=RemoteConfig)

    @field_validator("sources")
    @classmethod
    def _names(cls, value: dict[str, MixtureSource]) -> dict[str, MixtureSource]:
        if bad := [name for name in value if "/" in name]:
            raise ValueError(f"a source's name has no slash, unlike {', '.join(bad)}")
        return value

    @model_validator(mode="after")
    def _rows(self) -> "DataConfig":
        if self.pack_tokens is not None and self.pack_tokens < self.max_text_tokens:
            raise ValueError(
                f"pack_tokens={self.pack_tokens} is at least max_text_tokens={self.max_text_tokens}: "
                "the longest text must fit a row"
            )
        return self
