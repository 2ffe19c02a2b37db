"""Patience with a busy machine."""

import time
from collections.abc import Callable

# To load MLflow and make a database takes seconds, and many of them where others want the cores.
PATIENCE = 120.0
# All is in MLflow when a run has ended.
PATIENT = f"tracking.wait_seconds={PATIENCE}"


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.1)
