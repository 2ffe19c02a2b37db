"""Towers that an exported Roseate model names instead of holding them, and the classes of image towers."""

import hashlib
from pathlib import Path

import transformers
from transformers import AutoConfig, AutoModelForCausalLM

WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth")
TOWER = "flamingo.media_encoders.image.tower.backbone."


def load_tower(config, part, path, sha256):
    """Weights of a tower by their names in `RoseateForConditionalGeneration`.

    Raises:
        ValueError: likewise.
    """
    if not Path(path).is_dir():
        raise ValueError(
            f"the {part} tower is not in {path!r}; say where it is, tower_paths={{{part!r}: ...}}, or "
            "export with --towers include"
        )
    if (found := sha256_of(path)) != sha256:
        raise ValueError(
            f"the {part} tower in {path!r} is another one than this model was trained with "
            f"({found[:12]} instead of {sha256[:12]}); bring the old one back, or export with "
            "--towers include"
        )
    if part == "language":
        source, prefix = (
            AutoModelForCausalLM.from_pretrained(path, dtype="auto"),
            "flamingo.language.",
        )
    else:
        kind, inner, arguments = vision_class(config.vision)
        source = kind.from_pretrained(path, config=inner, dtype="auto", **arguments)
        source = getattr(source, "vision_model", source)
        prefix = TOWER + ("network." if config.vision["form"] == "naflex" else "")
    # As a shared weight has two names, but one is asked for.
    tied = set(source._tied_weights_keys or ()) if _is_tied(config, part) else set()
    return {f"{prefix}{k}": v for k, v in source.state_dict().items() if k not in tied}


def sha256_of(path):
    """Of a folder's weight files, in order of their names."""
    digest = hashlib.sha256()
    for file in sorted(f for f in Path(path).glob("*") if f.suffix in WEIGHTS):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _is_tied(config, part):
    return part == "language" and config.language["is_tied"]


def vision_class(values):
    """(class, config, arguments of the constructor) of a transformers image model."""
    config = dict(values["config"])
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    return getattr(transformers, values["class"]), config, values["arguments"]
