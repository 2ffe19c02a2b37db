"""The smallest towers and models, with fresh random weights."""

import shutil

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, ViTConfig, ViTModel

from model.build import assemble
from model.config import LossConfig, ModelConfig
from model.media import Media, MediaInput
from model.tokens import TokenIds
from model.vision_encoder import VisionEncoder

VOCAB = 40
END = VOCAB  # ids of <|endofchunk|> and <image>, beyond the frozen vocabulary
IMAGE = VOCAB + 1
IDS = TokenIds(media={"image": IMAGE}, text=(END,))
WIDTH = 32
NEEDS_CXX = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++")

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GATED = {"intermediate_size": 48, "num_key_value_heads": 2}
# What each family wants beside SIZES; head widths where the default is not width / heads.
FAMILIES = {
    "llama": GATED,
    "mistral": GATED | {"head_dim": 16},
    "qwen2": GATED,
    "qwen3": GATED | {"head_dim": 16},
    "gemma": GATED | {"head_dim": 16},
    "gemma2": GATED | {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": GATED | {"head_dim": 16, "query_pre_attn_scalar": 16},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 24},
    "gpt_neox": {"intermediate_size": 48},
    "gpt2": {},
    "phi": {"intermediate_size": 48},
    "cohere": GATED,
    "granite": GATED | {"logits_scaling": 3.0},
    "bloom": {},
    "gptj": {"rotary_dim": 8},
    "falcon": {},
}


def tiny_vit(image_size: int = 16) -> ViTModel:
    """A ViT of four patches."""
    config = ViTConfig(
        image_size=image_size,
        patch_size=8,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_dropout_prob=0.5,
    )
    return ViTModel(config, add_pooling_layer=False)


def tiny_vision() -> VisionEncoder:
    """A frozen encoder around `tiny_vit`."""
    half = (0.5, 0.5, 0.5)
    return VisionEncoder(tiny_vit(), image_size=16, mean=half, std=half, patch_size=8)


def tiny_language(kind: str = "llama", **settings) -> nn.Module:
    """A causal language model of three layers."""
    config = AutoConfig.for_model(kind, **SIZES | FAMILIES[kind] | settings)
    return AutoModelForCausalLM.from_config(config).eval()


def tiny_flamingo(
    kind: str = "llama",
    *,
    open_gates: bool = True,
    seed: int = 0,
    losses: dict | None = None,
    language: dict | None = None,
    resampler: dict | None = None,
    **sections,
):
    """A whole model; with gates open, images matter."""
    torch.manual_seed(seed)
    vision, language_model = tiny_vision(), tiny_language(kind, **(language or {}))
    config = ModelConfig(
        vision={"path": "-"},
        language={"path": "-"} | sections.pop("language_section", {}),
        resampler={"depth": 1, "num_latents": 3, "num_heads": 2, "head_dim": 8} | (resampler or {}),
        **sections,
    )
    model = assemble(
        vision, language_model, config, token_ids=IDS, seed=seed, losses=LossConfig(**losses or {})
    )
    if open_gates:
        for block in model.gated_blocks:
            nn.init.constant_(block.attn_gate, 0.7)
            nn.init.constant_(block.ff_gate, -0.6)
    return model.eval()


def tiny_media(seed: int = 0) -> Media:
    """One image for row 0, two for row 1."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(3, 1, 3, 16, 16, generator=generator)
    return Media(torch.tensor([[0, -1], [1, 2]]), {"image": MediaInput(pixels)})


def tiny_batch(seed: int = 0) -> dict:
    """Two rows: one image at 2 and right padding; two images at 1 and 5, no padding."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCAB, (2, 9), generator=generator)
    input_ids[0, 2] = input_ids[1, 1] = input_ids[1, 5] = IMAGE
    input_ids[1, 4] = END
    attention_mask = torch.ones(2, 9, dtype=torch.bool)
    attention_mask[0, 7:] = False
    labels = input_ids.masked_fill(~attention_mask | (input_ids == IMAGE), -100)
    return {
        "media": tiny_media(seed),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
    }
