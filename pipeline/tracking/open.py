"""Which tracker a process gets."""

from pathlib import Path

from pipeline.config import IngestRunConfig
from pipeline.tracking.spooled import SpooledTracker
from pipeline.tracking.tracker import NullTracker, Tracker


def open_tracker(config: IngestRunConfig, *, is_main: bool, folder: Path | None = None) -> Tracker:
    """A tracker, which gets ready while the caller does.

    Args:
        config: of the run.
        is_main: others keep nothing.
        folder: of the spool; by default that of the run.

    Raises:
        ConfigError: tracking.uri will not work.
    """
    if not is_main or not config.tracking.uri:
        return NullTracker()
    return SpooledTracker(config, folder or Path(config.root) / config.name / "tracking")
