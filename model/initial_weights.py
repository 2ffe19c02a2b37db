"""Trained weights to begin with: of another run of ours, dense or not, or of open_flamingo.

open_flamingo's checkpoints (v2) hold the trained parts alone, under names of their own; a dense
run of ours can go on with experts. Both come down to a dictionary of our names, which must fit the
model.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from model.experts import MixtureFeedForward, upcycled
from model.feed_forward import DenseFeedForward
from model.flamingo import Flamingo
from model.tokens import whole

PERCEIVER = "media_encoders.image.resampler"
# Name in open_flamingo -> ours; {i} is the layer.
RESAMPLER_NAMES = {
    r"latents": "latents",
    r"frame_embs": "frames",
    r"norm\.(weight|bias)": r"norm.\1",
    r"layers\.(\d+)\.0\.(norm_media|norm_latents)\.(weight|bias)": r"layers.\1.attention.\2.\3",
    r"layers\.(\d+)\.0\.(to_q|to_kv|to_out)\.weight": r"layers.\1.attention.\2.weight",
    r"layers\.(\d+)\.1\.0\.(weight|bias)": r"layers.\1.feed_forward_norm.\2",
    r"layers\.(\d+)\.1\.1\.weight": r"layers.\1.feed_forward.up_proj.weight",
    r"layers\.(\d+)\.1\.3\.weight": r"layers.\1.feed_forward.down_proj.weight",
}
BLOCK_NAMES = {
    r"attn\.norm\.(weight|bias)": r"attention.norm.\1",
    r"attn\.(to_q|to_kv|to_out)\.weight": r"attention.\1.weight",
    r"(attn_gate|ff_gate)": r"\1",
    r"ff\.0\.(weight|bias)": r"feed_forward_norm.\1",
    r"ff\.1\.weight": "feed_forward.up_proj.weight",
    r"ff\.3\.weight": "feed_forward.down_proj.weight",
}
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")


def load_initial(model: Flamingo, path: str) -> None:
    """Put the weights at a path into the trained parts of a model.

    Dense feed-forwards become experts where the model has them (`model.experts.upcycled`), whose
    routers keep their draw.

    Args:
        model: as built.
        path: a checkpoint folder of ours, its ``weights.safetensors``, or an open_flamingo ``.pt``.

    Raises:
        ValueError: no such file, or names or shapes that do not fit; the message names them all.
    """
    weights = read_weights(path)
    if any(name.startswith("perceiver.") for name in weights):
        weights = from_open_flamingo(weights, model)
    else:
        weights = upcycle_where_needed(weights, model)
    put_weights(model, weights, path)


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a dictionary of tensors on the CPU.

    Raises:
        ValueError: there is none at the path, or it cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "weights.safetensors"
    remedy = "give a checkpoint folder (step_...), its weights.safetensors, or an open_flamingo .pt"
    if not file.is_file():
        raise ValueError(f"model.init_from = {path!r}: there is no {file}; {remedy} file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
        found = found.get("model_state_dict", found)
    except Exception as error:  # both readers raise whatever the bytes lead them to
        raise ValueError(
            f"model.init_from = {path!r}: {file} holds no weights "
            f"({type(error).__name__}: {error}); {remedy} file"
        ) from error
    return {name.removeprefix("module."): value for name, value in found.items()}


def from_open_flamingo(weights: dict[str, Tensor], model: Flamingo) -> dict[str, Tensor]:
    """Rename the tensors of an open_flamingo checkpoint (v2) to the parts of this model.

    The n-th layer with a ``gated_cross_attn_layer`` becomes our n-th gated block. The rows of the
    new tokens are taken from its embedding, unless that was frozen and is not in the checkpoint.

    Raises:
        ValueError: a tensor of a trained part has a name that is not in the key map; or what no
            name or shape would tell: the blocks stand before other layers than the model's, a
            feed-forward is not gelu, or the embedding ends before the new tokens.
    """
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    layers = sorted(
        {int(m[1]) for n in weights if (m := re.search(r"\.(\d+)\.gated_cross_attn_layer\.", n))}
    )
    for name, value in weights.items():
        if "old_decoder_blocks" in name or ".gated_cross_attn_layers." in name:
            continue  # the same tensors again, under the names of an alias
        if name.startswith("perceiver."):
            target = _rename(name.removeprefix("perceiver."), RESAMPLER_NAMES)
            target = target and f"{PERCEIVER}.{target}"
        elif match := re.search(r"\.(\d+)\.gated_cross_attn_layer\.(.*)", name):
            target = _rename(match[2], BLOCK_NAMES)
            target = target and f"gated_blocks.{layers.index(int(match[1]))}.{target}"
        else:
            continue
        if target is None:
            unknown.append(name)
        else:
            renamed[target] = value
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors are not in the key map of open_flamingo v2, first "
            f"{unknown[0]!r}; only checkpoints of its v2 can be read"
        )
    _check_design(layers, model)
    return renamed | _new_rows(weights, model)


def _check_design(layers: list[int], model: Flamingo) -> None:
    """Refuse what would load without a word and compute something else."""
    if layers and tuple(layers) != model.fused_layers:
        theirs, ours = (", ".join(map(str, found)) for found in (layers, model.fused_layers))
        raise ValueError(
            f"the gated blocks of the checkpoint stand before the language layers {theirs}, those "
            f"of the model before {ours}; set model.cross_attention.first_layer = {layers[0]} and "
            f"model.cross_attention.every = {layers[0] + 1}, with the same language model"
        )
    for part, section in ((PERCEIVER, "resampler"), ("gated_blocks", "cross_attention")):
        for module in model.get_submodule(part).modules():
            if isinstance(module, DenseFeedForward) and module.form != "gelu":
                raise ValueError(
                    f"the feed-forwards of open_flamingo are gelu, those of the model "
                    f"{module.form}; set model.{section}.feed_forward = gelu"
                )


def _new_rows(weights: dict[str, Tensor], model: Flamingo) -> dict[str, Tensor]:
    """Rows of end of chunk and image, at their ids: open_flamingo gives them the same.

    They are not behind the frozen vocabulary: its embedding ends with the tokenizer, ours may go on
    with rows that no token has.
    """
    rows = {}
    for endings, name, ids in (
        (EMBEDDINGS, "new_tokens.weight", model.token_ids.ordered),
        (HEADS, "new_tokens.head_weight", model.token_ids.text),
    ):
        if name.endswith("head_weight") and model.new_tokens.head_weight is None:
            continue
        found = [n for n in weights if n.endswith(endings)]
        if not found:
            rows[name] = model.get_parameter(name).detach().clone()
        elif len(weights[found[0]]) <= max(ids):
            raise ValueError(
                f"{found[0]} has {len(weights[found[0]])} rows, but the new tokens have the ids "
                f"{', '.join(map(str, ids))}; set model.language.path to the language model that "
                "the checkpoint was trained with"
            )
        else:
            rows[name] = weights[found[0]][list(ids)]
    return rows


def _rename(name: str, names: dict[str, str]) -> str | None:
    for pattern, target in names.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(target)
    return None


def upcycle_where_needed(weights: dict[str, Tensor], model: Flamingo) -> dict[str, Tensor]:
    """Turn the dense feed-forwards in ``weights`` into experts where the model has experts.

    Raises:
        ValueError: see `model.experts.upcycled`.
    """
    weights = dict(weights)
    for name, module in model.named_modules():
        if not isinstance(module, MixtureFeedForward) or f"{name}.down_proj.weight" not in weights:
            continue
        dense = {
            part: weights.pop(f"{name}.{part}")
            for part in ("gate_up_proj.weight", "down_proj.weight")
            if f"{name}.{part}" in weights
        }
        experts = upcycled(
            dense,
            module.routed.num_experts,
            top_k=module.routed.top_k,
            shared_expert=module.shared is not None,
        )
        own = {f"{name}.{part}": value.detach() for part, value in module.state_dict().items()}
        weights |= own | {f"{name}.{part}": value for part, value in experts.items()}
    return weights


def put_weights(model: nn.Module, weights: dict[str, Tensor], source: object) -> None:
    """Copy weights by name into the trained parts of a model.

    Raises:
        ValueError: names or shapes are not those of the model; nothing is copied then.
    """
    # New tokens that are not trained any more still take the value they had.
    own = {n: p for n, p in model.named_parameters() if p.requires_grad or n in weights}
    problems = [f"{n} is missing" for n in sorted(set(own) - set(weights))]
    problems += [f"{n} is not in the model" for n in sorted(set(weights) - set(own))]
    for name in sorted(set(own) & set(weights)):
        shape = tuple(getattr(own[name], "ds_shape", own[name].shape))
        if shape != tuple(weights[name].shape):
            problems.append(f"{name} is {tuple(weights[name].shape)}, the model has {shape}")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" * (len(problems) > 8))
        raise ValueError(
            f"{len(problems)} parameters of {source} do not fit the model: {shown}. Use the model "
            "section of the run that wrote it (config.yaml beside the checkpoints)"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            with whole(parameter):
                parameter.copy_(weights[name])
