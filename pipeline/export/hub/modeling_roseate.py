"""A Roseate model in transformers: a Flamingo of a frozen image tower and a frozen language model.

Beside this file lie the project's own modules, as they are, but for their imports.
"""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.generation import GenerationConfig
from transformers.modeling_outputs import CausalLMOutput

from .configuration_roseate import RoseateConfig
from .contrastive_loss import ContrastiveHead
from .cross_attention import GatedCrossAttentionBlock, MaskedCrossAttention
from .experts import MixtureFeedForward, RoutedExperts
from .feed_forward import DenseFeedForward
from .flamingo import Flamingo
from .media import Media, MediaEncoder, MediaInput
from .resampler import PerceiverResampler
from .tokens import NewTokens, TokenIds
from .towers_roseate import load_tower, vision_class
from .vision_encoder import EfficientNetFeatures, NaFlexPatches, VisionEncoder

# In a generation config, but nothing that `generate` takes.
NO_SETTINGS = ("transformers_version", "_from_model_config")


class RoseateForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Text after images.

    `forward` gives logits ``[B, T, V]`` of prompts padded on either side; `generate` continues prompts
    padded on the left with the language model's cache. Pixels are ``[B, M, 3, S, S]``, image k of a row for
    the k-th image token of it; rows with fewer are filled with anything.
    """

    config_class = RoseateConfig
    base_model_prefix = "flamingo"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    # Small differences of a router's output decide where a token goes: never in 8 or 4 bits (the first
    # list), nor in 16 (the second).
    _keep_in_fp32_modules = ["routed.gate"]
    _keep_in_fp32_modules_strict = ["routed.gate"]

    def __init__(self, config):
        super().__init__(config)
        language_config = dict(config.language)
        path, scale = language_config.pop("layers_path"), language_config.pop("embed_scale")
        is_tied = language_config.pop("is_tied")
        language = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(language_config.pop("model_type"), **language_config)
        )
        vision = _vision(config.vision)
        cross, width = config.cross_attention, language.config.get_text_config().hidden_size
        blocks = nn.ModuleList(
            _block(i, width, vision.width, cross, config.experts)
            for i in range(len(config.fused_layers))
        )
        ids = TokenIds({"image": config.media_token_id}, tuple(config.text_token_ids))
        new_tokens = NewTokens(
            language.get_input_embeddings(), language.get_output_embeddings(), ids
        )
        new_tokens.scale = scale
        if is_tied:
            new_tokens.head_weight = None
            self._tied_weights_keys = {
                f"flamingo.language.{head}": f"flamingo.language.{embedding}"
                for head, embedding in language._tied_weights_keys.items()
            }
        head = None if config.contrastive is None else ContrastiveHead(**config.contrastive)
        resampler = PerceiverResampler(vision.width, **config.resampler)
        self.flamingo = Flamingo(
            {"image": MediaEncoder(vision, resampler)},
            language,
            new_tokens=new_tokens,
            gated_blocks=blocks,
            decoder_layers=language.get_submodule(path),
            layers=config.fused_layers,
            attend=cross["attend"],
            top_k=config.experts.get("top_k", 1),
            contrastive=head,
        )
        self.post_init()

    @classmethod
    def from_pretrained(cls, path, *args, config=None, tower_paths=None, **kwargs):
        """As transformers does it; towers that are not in the weights come from where they are named.

        Args:
            path: folder or hub id.
            tower_paths: part (``vision``, ``language``) to where such a tower is, if it has moved.

        Raises:
            ValueError: a tower is not there, or is another one than the model was trained with.
        """
        if path is None or kwargs.get("state_dict") is not None:
            return super().from_pretrained(path, *args, config=config, **kwargs)
        hub = {k: kwargs[k] for k in ("revision", "cache_dir", "token") if k in kwargs}
        if not isinstance(config, PretrainedConfig):
            config = RoseateConfig.from_pretrained(config or path, **hub)
        if not config.towers:
            return super().from_pretrained(path, *args, config=config, **kwargs)
        weights = {}
        for part, tower in config.towers.items():
            place = (tower_paths or {}).get(part, tower["path"])
            weights |= load_tower(config, part, place, tower["sha256"])
        folder = Path(path)
        if not folder.is_dir():
            kinds = ["*.safetensors", "*.json"]
            folder = Path(snapshot_download(str(path), allow_patterns=kinds, **hub))
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        # From here on the towers are part of it: `save_pretrained` writes them too.
        config.towers = {}
        model = super().from_pretrained(None, *args, config=config, state_dict=weights, **kwargs)
        loaded = model[0] if isinstance(model, tuple) else model
        loaded.generation_config = GenerationConfig.from_pretrained(folder)
        return model

    def get_input_embeddings(self):
        return self.flamingo.language.get_input_embeddings()

    def get_output_embeddings(self):
        return self.flamingo.language.get_output_embeddings()

    def _init_weights(self, module):
        """Weights come from a file; whatever a tower needs besides it sets itself."""

    def forward(self, input_ids, attention_mask=None, pixel_values=None, labels=None, **others):
        """Logits, and with labels (not shifted, -100 for none) their mean cross entropy.

        Raises:
            ValueError: a cache, positions or embeddings are given; `generate` keeps a cache by itself.
        """
        for name in ("past_key_values", "position_ids", "inputs_embeds"):
            if others.get(name) is not None:
                raise ValueError(f"forward takes whole prompts, no {name}; to continue, generate")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        targets = torch.full_like(input_ids, -100) if labels is None else labels
        media = self._media(input_ids, pixel_values)
        output = self.flamingo(media, input_ids, attention_mask, targets, with_logits=True)
        loss = None if labels is None else output.loss_sum / output.num_tokens.clamp(min=1)
        return CausalLMOutput(loss=loss, logits=output.logits)

    @torch.no_grad()
    def generate(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values=None,
        inputs=None,
        generation_config=None,
        **settings,
    ):
        """As transformers' `generate` of the language model, the prompt's tokens in front.

        Settings come from the call, then from the generation config (given or the model's own); greedy
        where neither says otherwise.
        """
        if settings.get("use_cache") is False:
            raise ValueError("generate always keeps a cache; leave use_cache out")
        input_ids = inputs if input_ids is None else input_ids
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        own = (generation_config or self.generation_config).to_diff_dict()
        own = {k: v for k, v in own.items() if k not in NO_SETTINGS}
        if "max_length" in settings:
            own.pop("max_new_tokens", None)
        media = self._media(input_ids, pixel_values)
        return self.flamingo.generate(media, input_ids, attention_mask, **own | settings)

    def can_generate(self):
        return True

    def _media(self, input_ids, pixel_values):
        counts = (input_ids == self.config.media_token_id).sum(1).tolist()
        if pixel_values is None:
            if any(counts):
                raise ValueError(f"{sum(counts)} image tokens, and no pixel_values")
            return Media(torch.full((len(counts), 1), -1, device=input_ids.device))
        if pixel_values.dim() == 4:
            pixel_values = pixel_values.unsqueeze(1)
        most = pixel_values.shape[1]
        if max(counts) > most:
            raise ValueError(
                f"a row has {max(counts)} image tokens, and pixel_values {most} images"
            )
        places = torch.arange(most, device=input_ids.device)
        slots = torch.arange(len(counts), device=input_ids.device).unsqueeze(1) * most + places
        slots = slots.masked_fill(
            places >= torch.tensor(counts, device=slots.device).unsqueeze(1), -1
        )
        return Media(slots, {"image": MediaInput(pixel_values.flatten(0, 1).unsqueeze(1))})


def _vision(values):
    if values["class"] == "efficientnet_lite0":
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise ImportError(
                "the image tower needs: pip install efficientnet_lite_pytorch"
            ) from None
        backbone = EfficientNetFeatures(EfficientNet.from_name("efficientnet-lite0"))
    else:
        kind, config, arguments = vision_class(values)
        backbone = kind(config, **arguments)
        backbone = getattr(backbone, "vision_model", backbone)
        if values["form"] == "naflex":
            backbone = NaFlexPatches(backbone)
    keys = ("image_size", "patch_size", "mean", "std")
    return VisionEncoder(backbone, **{key: values[key] for key in keys})


def _block(index, width, media_width, cross, experts):
    attention = MaskedCrossAttention(
        width,
        media_width,
        num_heads=cross["num_heads"],
        head_dim=cross["head_dim"],
        norm=cross["norm"],
        qk_norm=cross["qk_norm"],
    )
    hidden = cross["hidden"]
    if index in experts.get("blocks", ()):
        routed = RoutedExperts(
            width, hidden, num_experts=experts["num_experts"], top_k=experts["top_k"]
        )
        shared = DenseFeedForward(width, hidden) if experts["shared_expert"] else None
        feed_forward = MixtureFeedForward(routed, shared)
    else:
        merged = index in experts.get("merged", ())
        form = "swiglu" if merged else cross["feed_forward"]
        # A shared expert stands beside the mean of the others.
        hidden *= 2 if merged and experts["shared_expert"] else 1
        feed_forward = DenseFeedForward(width, hidden, form=form)
    return GatedCrossAttentionBlock(
        attention, feed_forward, text_width=width, norm=cross["norm"], gate=cross["gate"]
    )
