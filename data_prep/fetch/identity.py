"""Who we say we are."""

import functools
import importlib.metadata

from data_prep.config import DownloadConfig


def user_agent(config: DownloadConfig) -> str:
    """Who we are, and where whoever runs a server can ask about it."""
    version = _version()
    contact = f"+{config.contact}; " if config.contact else ""
    return f"{config.user_agent}/{version} ({contact}image-text dataset builder)"


@functools.cache
def _version() -> str:
    return importlib.metadata.version("roseate")
