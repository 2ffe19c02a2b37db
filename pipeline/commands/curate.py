"""A curation of the datasets of a run, with its figures in an MLflow run."""

from pathlib import Path

from data_prep.curate.datasets import Source
from data_prep.curate.run import curate as run_curation
from data_prep.errors import ConfigError, Problem
from pipeline.config import RunConfig
from pipeline.progress import RunProgress
from pipeline.share import find_share
from pipeline.tracking.open import open_tracker
from pipeline.tracking.tracker import Tracker

RUN_NAME = "curate"


def curate(config: RunConfig, *, workers: int | None = None, dry_run: bool = False) -> dict | None:
    """Curate `data.sources`; see `data_prep.curate.run.curate`.

    Returns:
        Its summary, `mlflow_run_id`, and how to train on what stays; None on all processes but the
        first.

    Raises:
        ConfigError: a folder cannot be read or written to, or the rules do not fit the datasets.
    """
    rank, world_size, _ = find_share()
    folder = Path(config.curate.folder) / "tracking"
    tracker = open_tracker(config, is_main=rank == 0 and not dry_run, folder=folder)
    try:
        with _Progress(silent=rank > 0) as progress:
            summary = run_curation(
                _sources(config),
                config.curate,
                workers=workers,
                rank=rank,
                world_size=world_size,
                dry_run=dry_run,
                advance=progress.put,
            )
        if summary is None:
            return None
        _tell(tracker, summary)
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    name = config.curate.name
    used = {n: [*config.data.sources[n].bitmaps] for n in summary["sources"]}
    use = [
        f"data.sources.{n}.bitmaps=[{', '.join(dict.fromkeys([*bitmaps, name]))}]"
        for n, bitmaps in used.items()
    ]
    return summary | {"mlflow_run_id": tracker.run_id, "use": use}


def _sources(config: RunConfig) -> list[Source]:
    if not config.data.sources:
        rule = "names at least one dataset"
        raise ConfigError([Problem("data.sources", {}, rule, "add data.sources.NAME.path")])
    sources = [
        Source(
            name,
            f"data.sources.{name}",
            source.path,
            tuple(b for b in source.bitmaps if b != config.curate.name),
        )
        for name, source in config.data.sources.items()
    ]
    apart = [
        Source(f"curate.apart_from.{n}", f"curate.apart_from.{n}", path, is_apart=True)
        for n, path in enumerate(config.curate.apart_from)
    ]
    if (held_out := config.data.held_out) is not None:
        key, bitmaps = "data.held_out", tuple(held_out.bitmaps)
        apart.insert(0, Source(key, key, held_out.path, bitmaps, is_apart=True))
    return sources + apart


def _tell(tracker: Tracker, summary: dict) -> None:
    """Every curation is a run of its own, which is there once it has succeeded."""
    tracker.begin(RUN_NAME)
    for name, source in summary["sources"].items():
        figures = {"samples": source["samples"], "kept": source["kept"]}
        figures |= {f"left_out/{rule}": count for rule, count in source["left_out"].items()}
        tracker.metrics({f"curate/{name}/{k}": float(v) for k, v in figures.items()}, 0)
        tracker.dataset(name, source["fingerprint"][:16], source["folder"], "curated")
    tracker.file(Path(summary["page"]))


class _Progress:
    """A bar over the samples, once it is known how many are to be looked at."""

    def __init__(self, *, silent: bool) -> None:
        self._silent, self._shown = silent, None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.__exit__()

    def put(self, done: int, total: int) -> None:
        if self._shown is None and total:
            self._shown = RunProgress(
                RUN_NAME, total=total, done=0, silent=self._silent, unit="sample"
            )
            self._shown.__enter__()
        if self._shown is not None:
            self._shown.step(done)
