"""The configuration files of an exported model."""

import transformers

from data_prep.errors import ConfigError, Problem
from model.experts import NativeExperts, RoutedExperts
from model.flamingo import Flamingo
from model.vision import EFFICIENTNET_LITE0, image_tower, is_factory
from model.vision_encoder import NaFlexPatches, VisionEncoder
from pipeline.trained import Trained

MODEL_TYPE = "roseate"
NAME = "RoseateForConditionalGeneration"
AUTO = {
    "AutoConfig": "configuration_roseate.RoseateConfig",
    "AutoModelForImageTextToText": f"modeling_roseate.{NAME}",
    "AutoModelForCausalLM": f"modeling_roseate.{NAME}",
    "AutoModel": f"modeling_roseate.{NAME}",
}
_NOT_OURS = (
    "transformers_version",
    "architectures",
    "quantization_config",
    "dtype",
    "_name_or_path",
)


def model_config(trained: Trained, precision: str, *, merged: list[int], towers: dict) -> dict:
    """config.json.

    Args:
        trained: the model.
        precision: dtype of the weights, as torch names it.
        merged: blocks whose experts were merged.
        towers: see `RoseateConfig`.

    Raises:
        ConfigError: a tower or the experts are of a kind that cannot be taken along.
    """
    model, config = trained.objective.model, trained.config.model
    cross, text = config.cross_attention, trained.objective.text
    width = model.language.config.get_text_config().hidden_size
    problems = []
    if any(
        isinstance(getattr(b.feed_forward, "routed", None), NativeExperts)
        for b in model.gated_blocks
    ):
        rule = "is stacked, for an export: DeepSpeed's own experts need DeepSpeed"
        key = "model.experts.backend"
        problems.append(Problem(key, "native", rule, "train with stacked experts"))
    if is_factory(config.vision.path):
        rule = "is a transformers image model or efficientnet_lite0, for an export"
        remedy = "make the factory's model a folder of transformers (save_pretrained)"
        problems.append(Problem("model.vision.path", config.vision.path, rule, remedy))
    if problems:
        raise ConfigError(problems)
    resampler = config.resampler.model_dump(exclude={"patch_positions"})
    positions = model.vision.num_patches if config.resampler.patch_positions else None
    return {
        "model_type": MODEL_TYPE,
        "architectures": [NAME],
        "auto_map": AUTO,
        "dtype": precision,
        "transformers_version": transformers.__version__,
        "vision": _vision(config.vision.path, model.vision),
        "language": _language(model),
        "fused_layers": list(model.fused_layers),
        "resampler": resampler | {"num_positions": positions},
        "cross_attention": {
            **{k: getattr(cross, k) for k in ("num_heads", "head_dim", "norm", "qk_norm", "gate")},
            "attend": cross.attend,
            "feed_forward": cross.feed_forward,
            "hidden": int(cross.ff_mult * width),
        },
        "experts": {
            "blocks": has_experts(model),
            "merged": merged,
            "num_experts": config.experts.num_experts,
            "top_k": config.experts.top_k,
            "shared_expert": config.experts.shared_expert,
        },
        "media_token_id": text.token_ids.media["image"],
        "text_token_ids": list(text.token_ids.text),
        "contrastive": _contrastive(trained, model),
        "towers": towers,
        "tie_word_embeddings": model.language.config.get_text_config().tie_word_embeddings,
        "eos_token_id": text.end_ids,
        "pad_token_id": text.pad_id,
        "bos_token_id": text.begin_id,
    }


def generation_config(trained: Trained) -> dict:
    """generation_config.json: a caption ends where training ends one."""
    text = trained.objective.text
    return {
        "eos_token_id": text.end_ids,
        "pad_token_id": text.pad_id,
        "bos_token_id": text.begin_id,
        "max_new_tokens": trained.config.evaluation.max_new_tokens,
        "transformers_version": transformers.__version__,
    }


def preprocessor_config(trained: Trained) -> dict:
    """preprocessor_config.json: as training fitted images, without its random parts."""
    image = trained.objective.image
    return {
        "image_processor_type": "RoseateImageProcessor",
        "auto_map": {
            "AutoImageProcessor": "processing_roseate.RoseateImageProcessor",
            "AutoProcessor": "processing_roseate.RoseateProcessor",
        },
        "processor_class": "RoseateProcessor",
        "size": image.size,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "fit": image.config.fit,
    }


def _vision(path: str, encoder: VisionEncoder) -> dict:
    sizes = {
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
    }
    if path == EFFICIENTNET_LITE0:
        return {"class": path, "config": {}, "arguments": {}, "form": "plain", **sizes}
    kind, config, arguments = image_tower(transformers.AutoConfig.from_pretrained(path))
    naflex = isinstance(encoder.backbone, NaFlexPatches)
    return {
        "class": kind.__name__,
        "config": _plain(config),
        "arguments": arguments,
        "form": "naflex" if naflex else "plain",
        **sizes,
    }


def _language(model: Flamingo) -> dict:
    layers = [
        name
        for name, module in model.language.named_modules()
        if len(model.decoder_layers) and tuple(module.children()) == tuple(model.decoder_layers)
    ]
    return _plain(model.language.config) | {
        "layers_path": layers[0],
        "embed_scale": model.new_tokens.scale,
        "is_tied": model.new_tokens.head_weight is None,
    }


def _plain(config: object) -> dict:
    values = {k: v for k, v in config.to_dict().items() if k not in _NOT_OURS}
    return values | {"model_type": config.model_type}


def _contrastive(trained: Trained, model: Flamingo) -> dict | None:
    if model.contrastive is None:
        return None
    head = model.contrastive
    return {
        "media_width": len(head.media_projection.norm_weight),
        "text_width": len(head.text_projection.norm_weight),
        "embed_dim": trained.config.loss.embed_dim,
        "form": trained.config.loss.contrastive_form,
    }


def has_experts(model: Flamingo) -> list[int]:
    """Blocks with stacked experts."""
    return [
        number
        for number, block in enumerate(model.gated_blocks)
        if isinstance(getattr(block.feed_forward, "routed", None), RoutedExperts)
    ]
