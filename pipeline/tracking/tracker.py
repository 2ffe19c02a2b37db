"""What a tracker is asked, and the one that keeps nothing."""

from pathlib import Path
from typing import Protocol

from PIL import Image

from pipeline.healing.events import Event

START_SECONDS = 120.0  # for the run's id, where the server answers at all; it takes some seconds


class Tracker(Protocol):
    """What the loop needs of a tracker. `step` is always the optimizer step. Nothing waits for a server."""

    @property
    def run_id(self) -> str | None:
        """MLflow run, None while it is not known."""

    def begin(
        self,
        name: str,
        *,
        goes_on: bool = False,
        run_id: str | None = None,
        parent: str | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """Begin a run, or go on in one; nothing else is told before.

        Args:
            name: of a new run.
            goes_on: go on in the run of the spool, if it has one.
            run_id: MLflow run to go on in where the spool has none.
            parent: MLflow run to stand under; None for that of the experiment folder.
            start_seconds: to wait for the run's id, where the server answers at all.

        Raises:
            ConfigError: MLflow will never take it.
        """

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Points of curves."""

    def picture(self, image: Image.Image, name: str) -> None:
        """A picture, under a path such as ``samples/step_000100.png``."""

    def table(self, rows: dict[str, list], name: str) -> None:
        """Columns, under a path that ends with ``.json``."""

    def file(self, path: Path, folder: str | None = None) -> None:
        """The present content of a file."""

    def tags(self, values: dict[str, str]) -> None:
        """Tags, which may change."""

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """A dataset that the run reads, by its fingerprint."""

    def checkpoint(self, step: int, url: str, values: dict[str, float]) -> None:
        """A checkpoint, linked, with figures of it."""

    def register(self, step: int, url: str, name: str, alias: str) -> None:
        """The model of a checkpoint told before, under a name that others find it by."""

    def event(self, event: Event) -> None:
        """A point of the curve events/{kind}, how many there are so far, and a row of events.json."""

    def end(self, status: str = "FINISHED") -> None:
        """FINISHED, FAILED, or KILLED where the run is to go on. What never began leaves no run."""


class NullTracker:
    """Keeps nothing: for all ranks but the first, and where tracking.uri is empty."""

    run_id = None

    def begin(self, name, *, goes_on=False, run_id=None, parent=None, start_seconds=START_SECONDS):
        pass

    def metrics(self, values, step):
        pass

    def picture(self, image, name):
        pass

    def table(self, rows, name):
        pass

    def file(self, path, folder=None):
        pass

    def tags(self, values):
        pass

    def dataset(self, name, digest, source, context):
        pass

    def checkpoint(self, step, url, values):
        pass

    def register(self, step, url, name, alias):
        pass

    def event(self, event):
        pass

    def end(self, status="FINISHED"):
        pass
