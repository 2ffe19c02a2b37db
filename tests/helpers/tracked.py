"""Runs that are tracked."""

from pipeline.config import RunConfig
from pipeline.tracking.open import open_tracker
from pipeline.tracking.spooled import SpooledTracker


def begin_run(config: RunConfig, name: str | None = None, **options: object) -> SpooledTracker:
    """A tracker whose run has begun."""
    tracker = open_tracker(config, is_main=True)
    tracker.begin(name or config.name, **options)
    return tracker
