"""What a child process needs to import the modules that this process has."""

import os
from pathlib import Path


def python_path() -> str:
    """PYTHONPATH of this process with the project's root before it, however that was found here."""
    root = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
