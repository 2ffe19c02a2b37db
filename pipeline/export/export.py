"""A checkpoint as a folder that transformers' Auto classes load."""

import json
import os
import shutil
from pathlib import Path

import torch

from data_prep.errors import ConfigError, Problem
from pipeline.export.card import write_card
from pipeline.export.code import remote_code
from pipeline.export.config import (
    MODEL_TYPE,
    generation_config,
    has_experts,
    model_config,
    preprocessor_config,
)
from pipeline.export.merge import merge_measured
from pipeline.export.references import PARTS, find_references
from pipeline.trained import Trained

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
MEASURED = 64  # held-out samples that a merge is measured on
# In fp32 whatever the others are: few values, on which much depends.
FINE = (".routed.gate", "new_tokens")
SHARD = "5GB"  # weights beyond that are in several files


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder with something in it; with `overwrite`, all but an earlier export; one without a name.

    Raises:
        ConfigError: likewise.
    """
    if folder.name in ("", ".."):
        # What is there is replaced as a whole, by its name.
        rule = "is a folder by its name, and not the one that you are in"
        raise ConfigError([Problem("DIR", str(folder), rule, "name a folder in it")])
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        rule = "is a folder that is not there yet, or empty"
        raise ConfigError([Problem("DIR", str(folder), rule, "name another one, or --overwrite")])
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = {}
    if config.get("model_type") != MODEL_TYPE:
        rule = (
            "is an earlier export, to be replaced by --overwrite; what is in it is something else"
        )
        raise ConfigError([Problem("DIR", str(folder), rule, "name another one, or empty it")])


def export_model(
    trained: Trained,
    folder: Path,
    *,
    towers: str = "include",
    precision: str = "fp32",
    experts: str = "keep",
    overwrite: bool = False,
) -> dict:
    """Write the folder; it has its name only when it is whole.

    Args:
        trained: the model, which `experts="merge"` changes.
        folder: to be made.
        towers: ``include`` their weights, or ``reference`` where they are, by path and sha256.
        precision: of the weights, fp32, bf16 or fp16.
        experts: ``keep``, or ``merge`` into one feed-forward.
        overwrite: replace what is there.

    Raises:
        ConfigError: the folder is not empty, the disk is too full, or a part cannot be taken along.
    """
    check_target(folder, overwrite=overwrite)
    model = trained.objective.model
    references = find_references(trained) if towers == "reference" else {}
    merge = merge_measured(trained, MEASURED) if experts == "merge" else None
    merged = merge["blocks"] if merge else []
    dtype = DTYPES[precision]
    config = model_config(trained, dtype, merged=merged, towers=references)
    weights = _weights(model, getattr(torch, dtype), [*references])
    size = sum(w.numel() * w.element_size() for w in weights.values())
    check_room(folder, size)
    kept = "kept" if has_experts(model) else "none"
    summary = {
        "folder": str(folder),
        "step": trained.step,
        "towers": references or "included",
        "experts": "merged" if merge else kept,
        "dtype": dtype,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": size,
        "files": 0,
        "merge": merge,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir()
        _write(partial, trained, config, weights, write_card(trained, folder.name, summary))
        summary["files"] = len(list(partial.iterdir()))
        _put(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {k: v for k, v in summary.items() if v is not None}


def check_room(folder: Path, size: int) -> None:
    """Refuse a disk that is too full.

    Args:
        folder: to be made.
        size: bytes of weights.

    Raises:
        ConfigError: likewise.
    """
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if (free := shutil.disk_usage(above).free) < 1.1 * size:
        rule = f"has room for {size / 1e9:.1f} GB ({free / 1e9:.1f} GB are free)"
        raise ConfigError([Problem("DIR", str(folder), rule, "make room, or name another disk")])


def _put(partial: Path, folder: Path) -> None:
    """Give a whole folder its name; an earlier one goes only then."""
    if not folder.exists():
        os.replace(partial, folder)
        return
    earlier = partial.with_name(f"{partial.name}.earlier")
    os.replace(folder, earlier)
    os.replace(partial, folder)
    shutil.rmtree(earlier)


def _write(
    folder: Path, trained: Trained, config: dict, weights: dict[str, torch.Tensor], card: str
) -> None:
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(weights, folder, max_shard_size=SHARD)
    trained.objective.text.tokenizer.save_pretrained(folder)
    files = {
        "config.json": config,
        "generation_config.json": generation_config(trained),
        "preprocessor_config.json": preprocessor_config(trained),
        "processor_config.json": {
            "processor_class": "RoseateProcessor",
            "auto_map": {"AutoProcessor": "processing_roseate.RoseateProcessor"},
        },
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    for name, text in remote_code().items():
        (folder / name).write_text(text)
    (folder / "README.md").write_text(card)
    # safetensors writes files that only their owner may read.
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / "README.md").stat().st_mode)


def _weights(
    model: torch.nn.Module, dtype: torch.dtype, without: list[str]
) -> dict[str, torch.Tensor]:
    """State of the model by its names in the export."""
    prefixes = tuple(PARTS[part] for part in without)
    tied = set()
    if model.new_tokens.head_weight is None:
        tied = {f"language.{name}" for name in model.language._tied_weights_keys or ()}
    found = {}
    for name, value in model.state_dict().items():
        if name in tied or (prefixes and name.startswith(prefixes)):
            continue
        if value.is_floating_point() and not any(part in name for part in FINE):
            value = value.to(dtype)
        found[f"flamingo.{name}"] = value.cpu()
    return found
