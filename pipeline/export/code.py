"""The Python files of an exported model: its classes for transformers, and the project's own modules."""

import re
from pathlib import Path

HUB = Path(__file__).parent / "hub"
MODEL = Path(__file__).parents[2] / "model"
# What modeling_roseate.py imports beside itself; what these import comes along.
ROOTS = (
    *("contrastive_loss", "cross_attention", "experts", "feed_forward", "flamingo", "media"),
    *("resampler", "tokens", "vision_encoder"),
)
_IMPORT = re.compile(r"^(\s*from )model\.(\w+)( import )", re.MULTILINE)
_DEEPSPEED = re.compile(r"^(\s+)(?:import deepspeed|from deepspeed\S* import) ?.*$", re.MULTILINE)
_NOT_HERE = (
    r'\1raise ImportError("training with DeepSpeed needs the project that exported this model")'
)


def remote_code() -> dict[str, str]:
    """File name to text.

    The project's modules are taken as they are, but for their imports of each other, which become
    relative, and those of DeepSpeed, which nobody needs to load a model.
    """
    files = {path.name: path.read_text() for path in sorted(HUB.glob("*_roseate.py"))}
    waiting, done = [*ROOTS], set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        text = (MODEL / f"{name}.py").read_text()
        waiting += [match[1] for match in _IMPORT.findall(text)]
        text = _IMPORT.sub(r"\1.\2\3", text)
        files[f"{name}.py"] = _DEEPSPEED.sub(_NOT_HERE, text)
    return files
