"""The smallest towers and models, with fresh random weights."""

import torch
from torch import nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    ViTConfig,
    ViTModel,
)

from model.build import assemble
from model.config import ModelConfig
from model.vision import VisionEncoder

VOCAB = 40
IMAGE = VOCAB  # id of <image>, beyond the frozen vocabulary
WIDTH = 32


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


def tiny_language(kind: str = "llama") -> nn.Module:
    """A causal language model of three layers."""
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 64}
    sizes |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48)).eval()
    if kind == "opt":
        return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=WIDTH)).eval()
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48)).eval()


def tiny_flamingo(kind: str = "llama", *, open_gates: bool = True, seed: int = 0, **sections):
    """A whole model; with gates open, images matter."""
    torch.manual_seed(seed)
    vision, language = tiny_vision(), tiny_language(kind)
    config = ModelConfig(
        vision={"path": "-"},
        language={"path": "-"},
        resampler={"depth": 1, "num_latents": 3, "num_heads": 2, "head_dim": 8},
        **sections,
    )
    model = assemble(vision, language, config, image_token_id=IMAGE, seed=seed)
    if open_gates:
        for block in model.gated_blocks:
            nn.init.constant_(block.attn_gate, 0.7)
            nn.init.constant_(block.ff_gate, -0.6)
    return model.eval()


def tiny_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Two rows: one image at 2 and right padding; two images at 1 and 5, no padding."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCAB, (2, 9), generator=generator)
    input_ids[0, 2] = input_ids[1, 1] = input_ids[1, 5] = IMAGE
    attention_mask = torch.ones(2, 9, dtype=torch.bool)
    attention_mask[0, 7:] = False
    labels = input_ids.masked_fill(~attention_mask | (input_ids == IMAGE), -100)
    return {
        "images": torch.randn(2, 2, 3, 16, 16, generator=generator),
        "image_mask": torch.tensor([[True, False], [True, True]]),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
    }
