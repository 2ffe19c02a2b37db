"""From a `ModelConfig` to modules: loads the frozen towers, makes the trained parts between them."""

import logging

import torch
from torch import nn

from model.config import ExpertsConfig, LossConfig, ModelConfig
from model.contrastive_loss import ContrastiveHead
from model.cross_attention import GatedCrossAttentionBlock, MaskedCrossAttention
from model.experts import MixtureFeedForward, NativeExperts, RoutedExperts
from model.feed_forward import DenseFeedForward
from model.flamingo import Flamingo
from model.initial_weights import load_initial
from model.language import find_decoder_layers, fused_layers, load_language, plan_language
from model.media import MediaEncoder
from model.resampler import PerceiverResampler
from model.tokens import NewTokens, TokenIds
from model.vision import load_vision, plan_vision
from model.vision_encoder import VisionEncoder

logger = logging.getLogger(__name__)

NO_LOSSES = LossConfig()


def build_flamingo(
    config: ModelConfig,
    *,
    token_ids: TokenIds,
    seed: int,
    losses: LossConfig = NO_LOSSES,
    dtype: torch.dtype = torch.float32,
) -> Flamingo:
    """Load the frozen towers and build the trained parts.

    The trained parts depend on the seed alone; the global random state is left as it was.

    Args:
        config: the `model` section.
        token_ids: of the new tokens in the tokenizer.
        seed: of the trained parts.
        losses: which losses need parts of their own.
        dtype: of the frozen towers; the trained parts are made in fp32.

    Raises:
        ImportError: a named tower's package is missing.
        ValueError: a tower cannot be loaded, the first fused layer is beyond the model, or the
            initial weights do not fit.
    """
    vision = load_vision(config.vision.path, dtype=dtype)
    language = load_language(config.language.path, dtype=dtype)
    model = assemble(vision, language, config, token_ids=token_ids, seed=seed, losses=losses)
    if config.init_from is not None:
        load_initial(model, config.init_from)
    return model


def plan_flamingo(config: ModelConfig, *, losses: LossConfig = NO_LOSSES) -> Flamingo:
    """Build the whole model on the meta device, without weights, from the towers' configs.

    Raises:
        ValueError: as in `build_flamingo`.
    """
    vision = plan_vision(config.vision.path, config.vision.architecture)
    language = plan_language(config.language.path, config.language.architecture)
    vocabulary = language.config.get_text_config().vocab_size
    token_ids = TokenIds(media={"image": vocabulary + 1}, text=(vocabulary,))
    with torch.device("meta"):
        return assemble(vision, language, config, token_ids=token_ids, seed=0, losses=losses)


def assemble(
    vision: VisionEncoder,
    language: nn.Module,
    config: ModelConfig,
    *,
    token_ids: TokenIds,
    seed: int,
    losses: LossConfig = NO_LOSSES,
) -> Flamingo:
    """Build the trained parts around towers that are already there."""
    cross = config.cross_attention
    width = language.config.get_text_config().hidden_size
    decoder_layers = find_decoder_layers(language, config.language.layers_path)
    layers = fused_layers(len(decoder_layers), first_layer=cross.first_layer, every=cross.every)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = config.resampler.model_dump(exclude={"patch_positions"})
        positions = vision.num_patches if config.resampler.patch_positions else None
        resampler = PerceiverResampler(vision.width, **sizes, num_positions=positions)
        blocks = nn.ModuleList(
            _build_block(index, width, vision.width, config) for index in range(len(layers))
        )
        contrastive = None
        if losses.contrastive:
            # Of what stands before the head: OPT may project it to another width than its layers have.
            text_width = language.get_output_embeddings().in_features
            contrastive = ContrastiveHead(
                vision.width, text_width, losses.embed_dim, form=losses.contrastive_form
            )
    new_tokens = NewTokens(
        language.get_input_embeddings(), language.get_output_embeddings(), token_ids
    )
    new_tokens.requires_grad_(config.language.train_new_tokens)
    model = Flamingo(
        {"image": MediaEncoder(vision, resampler)},
        language,
        new_tokens=new_tokens,
        gated_blocks=blocks,
        decoder_layers=decoder_layers,
        layers=layers,
        attend=cross.attend,
        top_k=config.experts.top_k,
        jitter=config.experts.jitter,
        language_loss=losses.language > 0,
        contrastive=contrastive,
    )
    for part, counts in describe_parameters(model).items():
        logger.info("%s: %s trainable, %s frozen", part, counts["trainable"], counts["frozen"])
    return model


def _build_block(
    index: int, width: int, media_width: int, config: ModelConfig
) -> GatedCrossAttentionBlock:
    cross = config.cross_attention
    attention = MaskedCrossAttention(
        width,
        media_width,
        num_heads=cross.num_heads,
        head_dim=cross.head_dim,
        norm=cross.norm,
        qk_norm=cross.qk_norm,
    )
    hidden = int(cross.ff_mult * width)
    return GatedCrossAttentionBlock(
        attention,
        build_feed_forward(index, width, hidden, config.experts, form=cross.feed_forward),
        text_width=width,
        norm=cross.norm,
        gate=cross.gate,
        gate_init=cross.gate_init,
    )


def build_feed_forward(
    block_index: int, width: int, hidden: int, experts: ExpertsConfig, *, form: str = "swiglu"
) -> nn.Module:
    """Build the feed-forward of one gated block: dense, or experts where the config puts them."""
    if experts.num_experts == 1 or block_index % experts.every != experts.every - 1:
        return DenseFeedForward(width, hidden, form=form)
    counts = {"num_experts": experts.num_experts, "top_k": experts.top_k}
    if experts.backend == "native":
        routed = NativeExperts(width, hidden, **counts)
    else:
        routed = RoutedExperts(width, hidden, **counts, capacity_factor=experts.capacity_factor)
    shared = DenseFeedForward(width, hidden) if experts.shared_expert else None
    return MixtureFeedForward(routed, shared)


def describe_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Count parameters per direct part of the model and in total, trainable and frozen."""
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        kind = "trainable" if parameter.requires_grad else "frozen"
        for part in (name.split(".")[0], "total"):
            counts.setdefault(part, {"trainable": 0, "frozen": 0})[kind] += getattr(
                parameter, "ds_numel", parameter.numel()
            )
    return counts
