"""The `curate` section of a run: which samples of its datasets are kept."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

SelectionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Range(BaseModel):
    """Both ends belong to it; an end that is null is open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float | None = Field(None, allow_inf_nan=False, description="the least that is kept")
    max: float | None = Field(None, allow_inf_nan=False, description="the most that is kept")

    @model_validator(mode="after")
    def _ends(self) -> "Range":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is not above max, and {self.min:g} is above {self.max:g}")
        return self


class CurateConfig(BaseModel):
    """Rules for the samples of `data.sources`; what breaks one is left out by a bitmap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: SelectionName = Field(
        "curated", description="of the selection that is written: bitmaps/NAME of each dataset"
    )
    folder: str = Field(
        "{root}/curation", description="where what was read of the samples is kept, and the page"
    )
    width: Range = Field(default_factory=Range, description="of the first image as stored, pixels")
    height: Range = Field(default_factory=Range, description="of the first image as stored, pixels")
    characters: Range = Field(
        default_factory=Range, description="of all texts of a sample together"
    )
    columns: dict[str, Range] = Field(
        default_factory=dict,
        description="numbers that the ledger or the samples' JSON hold, by name, such as "
        "{similarity: {min: 0.28}}; a sample without one is left out",
    )
    similar_images: bool = Field(
        True, description="of images that look alike only the first stays, over all sources"
    )
    hash_distance: int = Field(
        3, ge=0, le=7, description="bits of 64 in which the hashes of similar images may differ"
    )
    miniature_distance: int = Field(
        16,
        ge=0,
        le=255,
        description="levels by which their miniatures may differ anywhere, faint ones less",
    )
    same_text: int | None = Field(
        None, ge=1, description="samples that may have one and the same text; null: any number"
    )
    apart_from: list[str] = Field(
        default_factory=list,
        description="further dataset folders, as of evaluations, whose images no sample may show; "
        "data.held_out is one of them",
    )
