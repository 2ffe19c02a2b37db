"""An ingest with its figures in an MLflow run, which an ingest that goes on continues."""

import hashlib
import json
import sys
import time
from pathlib import Path

from data_prep.ingest.progress import Figures
from data_prep.ingest.run import run_ingest
from data_prep.report import REPORT_NAME
from data_prep.storage import Folder
from pipeline.config import IngestRunConfig
from pipeline.tracking.open import open_tracker
from pipeline.tracking.tracker import Tracker

RUN_NAME = "ingest"
SECONDS_BETWEEN_POINTS = 5.0
_RUN_FILE = "tracking.json"  # in ingest.output: the MLflow run that its figures go to


def ingest(config: IngestRunConfig, *, only: str | None = None) -> dict[str, object]:
    """Ingest the tables of a run; see `data_prep.ingest.run.run_ingest`.

    Returns:
        Its summary, and `mlflow_run_id` where tracking is on.
    """
    if config.ingest.download.contact is None:
        print(
            "roseate: nobody whose server this asks can reach you: set ingest.download.contact to an "
            "address or a page",
            file=sys.stderr,
        )
    points = _Points(config)
    try:
        summary = run_ingest(config.ingest, only=only, on_figures=points.put)
    except BaseException:
        points.close()
        raise
    return summary | {"mlflow_run_id": points.close(summary)}


class _Points:
    """Figures now and then, into the spool of the tracker: workers wait for no server."""

    def __init__(self, config: IngestRunConfig) -> None:
        self._config, self._tracker = config, _open(config)
        self._sent = -SECONDS_BETWEEN_POINTS
        self._waiting: Figures | None = None

    def put(self, figures: Figures) -> None:
        """What comes too soon after another is left out, except for the last."""
        self._waiting = figures
        if time.monotonic() - self._sent >= SECONDS_BETWEEN_POINTS:
            self._send()

    def close(self, summary: dict | None = None) -> str | None:
        """Without a summary the ingest has failed. The MLflow run, if it is known."""
        if self._waiting is not None:
            self._send()
        if summary is not None:
            for name, source in summary["sources"].items():
                folder = source["folder"]
                self._tracker.dataset(name, source["fingerprint"][:16], folder, "ingested")
                report = Path(folder) / REPORT_NAME
                if report.is_file():
                    self._tracker.file(report, f"ingest/{report.parent.name}")
        self._tracker.end("FAILED" if summary is None else "FINISHED")
        run_id = self._tracker.run_id
        if run_id:
            folder = Folder(self._config.ingest.output, "ingest.output")
            folder.write(_RUN_FILE, json.dumps({"run_id": run_id}).encode())
        return run_id

    def _send(self) -> None:
        figures, self._waiting, self._sent = self._waiting, None, time.monotonic()
        self._tracker.metrics(_values(figures), figures.ended)


def _open(config: IngestRunConfig) -> Tracker:
    """The run that an earlier start of this ingest began, or a new one."""
    output = Folder(config.ingest.output, "ingest.output")
    run_id = None
    if config.tracking.uri and output.exists(_RUN_FILE):
        run_id = json.loads(output.read(_RUN_FILE))["run_id"]
    # On a disk of this machine, wherever the output is; another output is another ingest.
    name = hashlib.sha256(config.ingest.output.encode()).hexdigest()[:8]
    folder = Path(config.root) / RUN_NAME / name / "tracking"
    tracker = open_tracker(config, is_main=True, folder=folder)
    tracker.begin(RUN_NAME, goes_on=True, run_id=run_id, start_seconds=0.0)
    return tracker


def _values(figures: Figures) -> dict[str, float]:
    """By the rows that have ended, which an ingest that goes on counts on."""
    values = {
        "ingest/images_per_second": figures.images_per_second,
        "ingest/rows_per_second": figures.rows_per_second,
        "ingest/ok_share": figures.ok_share,
        "ingest/rows": float(figures.ended),
    }
    if figures.seconds_left is not None:
        values["ingest/seconds_left"] = figures.seconds_left
    return values | {f"ingest/status/{k}": float(n) for k, n in figures.statuses.items()}
