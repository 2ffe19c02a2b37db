"""Section `evaluation` of a run."""

from typing import Literal

from pydantic import Field, field_validator

from pipeline.section import Section


class EvaluationData(Section):
    """Files to evaluate on; `pipeline/evaluation/layouts/` reads them."""

    layout: Literal["auto", "coco", "karpathy", "vqa", "image_folder", "dataset"] = Field(
        "auto",
        description="auto: known by what the files hold; coco: captions JSON; karpathy: split JSON; "
        "vqa: VQAv2 questions and annotations; image_folder: a folder per class; dataset: our own",
    )
    path: str = Field(
        description="folder of the images; of image_folder the one above the classes' folders; of "
        "dataset the dataset folder or its URL"
    )
    annotations: str | None = Field(
        None, description="JSON file with captions, splits or answers; not of folders"
    )
    questions: str | None = Field(None, description="VQAv2's JSON file with the questions")
    split: str | None = Field(
        None,
        description="karpathy: train, restval, val or test, several joined by +; default test",
    )
    class_names: str | None = Field(
        None,
        description="image_folder: text file with a name a line in order of the folders, or JSON "
        "{folder: name}; default the folders' names",
    )
    held_out_fraction: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="dataset: only what training with this data.held_out_fraction left out; 0: all",
    )
    bitmaps: list[str] = Field(
        default_factory=list,
        description="dataset: selections in its bitmaps/; a sample must be in all",
    )
    limit: int | None = Field(
        None, ge=1, description="records evaluated, drawn by seed and kept in order; null: all"
    )
    seed: int = Field(0, ge=0, description="of the records that limit draws")
    max_missing: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of images that may be missing or unreadable; they are counted and shown",
    )


SUITES = ("captioning", "perplexity", "vqa", "classification", "retrieval", "fewshot", "speed")
Suite = Literal[SUITES]


class EvaluationConfig(Section):
    suites: list[Suite] = Field(
        default_factory=lambda: ["captioning", "perplexity"],
        min_length=1,
        description="what is evaluated in training; also without --suite",
    )
    every_steps: int = Field(
        0, ge=0, description="steps between two evaluations in training; 0: none"
    )
    data: EvaluationData | None = Field(
        None, description="files to evaluate on; null: the run's own held-out samples"
    )
    demonstrations: EvaluationData | None = Field(
        None, description="files that examples are taken from; null: the evaluation's own"
    )
    max_samples: int = Field(
        256,
        ge=1,
        description="samples evaluated in training, and of a run's own held-out ones, at most; drawn by "
        "key. roseate evaluate takes all of evaluation.data, but for its limit",
    )
    batch_size: int = Field(16, ge=1, description="prompts that the model takes together")
    max_new_tokens: int = Field(24, ge=1, description="tokens generated per caption or answer")
    num_beams: int = Field(1, ge=1, description="beams of captions; answers are greedy")
    shots: list[int] = Field(
        default_factory=lambda: [0, 4, 8, 16, 32],
        min_length=1,
        description="numbers of examples before a query, of suite fewshot",
    )
    selections: list[Literal["random", "rices"]] = Field(
        default_factory=lambda: ["random", "rices"],
        min_length=1,
        description="how examples are chosen; rices: by the likeness of their images",
    )
    class_form: str = Field("{name}", description="text of a class, its name put in for {name}")
    retrieval_samples: int = Field(
        64, ge=2, description="images that are compared with all of their texts, by likelihood"
    )
    speed_batches: list[int] = Field(
        default_factory=lambda: [1, 4, 16], min_length=1, description="batch sizes of suite speed"
    )
    resamples: int = Field(1000, ge=1, description="of the bootstrap's intervals")
    attributes: Literal["scenes"] | None = Field(
        None, description="grammar by which captions are compared attribute by attribute"
    )
    pictures: int = Field(16, ge=0, description="held-out pictures with captions sent to MLflow")

    @field_validator("class_form")
    @classmethod
    def _form(cls, value: str) -> str:
        if "{name}" not in value:
            raise ValueError("has {name} where the name of the class stands")
        return value
