"""The smallest towers and the smallest configuration that still have every part."""

from pathlib import Path

import torch

from pipeline.config import RunConfig, load_config
from pipeline.data.tokenizer import train_tokenizer

OVERRIDES = (
    "model.resampler={depth: 1, num_latents: 4, num_heads: 2, head_dim: 8}",
    "model.cross_attention={every: 1, num_heads: 2, head_dim: 8}",
    "batch={global_size: 8, micro_size: 4}",
    "optim.warmup_steps=2",
    "train={steps: 6, log_every_steps: 1, validate_every_steps: 6, validate_samples: 16}",
    "evaluation.max_samples=16",
    "train.precision=fp32",
)


def tiny_config(root: Path, *overrides: str) -> RunConfig:
    return load_config("demo", [f"root={root}", *OVERRIDES, *overrides])


def write_towers(root: Path, *, width: int = 32, layers: int = 2) -> None:
    """A random ViT and a random Llama with a tokenizer, as transformers folders."""
    from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

    texts = ["two small red circles left of a large blue square", "a large green star"] * 50
    tokenizer = train_tokenizer(texts, 300)
    torch.manual_seed(0)
    vision = ViTConfig(
        image_size=64,
        patch_size=16,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
    )
    ViTModel(vision, add_pooling_layer=False).save_pretrained(root / "vision")
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(language).save_pretrained(root / "language")
    tokenizer.save_pretrained(root / "language")
