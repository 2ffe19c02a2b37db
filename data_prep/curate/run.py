"""One curation: find what the rules need to know, decide, write a selection beside each index.

What was found is kept by dataset and shard, so that a killed curation goes on, and other rules need not
read the tars again. Several processes divide the shards; the first decides when all are there.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from data_prep.bitmap import write_bitmap
from data_prep.curate.config import CurateConfig
from data_prep.curate.datasets import Samples, Source
from data_prep.curate.decide import Decision, decide
from data_prep.curate.facts import make_facts
from data_prep.curate.page import write_curation_page
from data_prep.errors import ConfigError, Problem
from data_prep.pool import worker_pool
from data_prep.storage import Folder

PAGE = "curation.html"
_POLL_SECONDS = 0.5
# Samples looked at, and in all.
Advance = Callable[[int, int], None]


def curate(
    sources: list[Source],
    config: CurateConfig,
    *,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    dry_run: bool = False,
    advance: Advance = lambda done, total: None,
) -> dict | None:
    """Curate datasets together.

    Args:
        sources: datasets in the order in which the first of similar samples is looked for.
        config: the rules.
        workers: processes of this one, by default one for each CPU.
        rank, world_size: this process among those that divide the shards.
        dry_run: write no selection, only the page.
        advance: called with samples looked at, and in all.

    Returns:
        Per source samples, kept and left out by rule; the page; None on all ranks but the first.

    Raises:
        ConfigError: a folder cannot be read or written to, or the rules do not fit the datasets.
    """
    with _writing(config.folder):
        Path(config.folder).mkdir(parents=True, exist_ok=True)
    samples = Samples(sources, Path(config.folder), tuple(config.columns))
    _look_at_all(samples, workers, rank, world_size, advance)
    if rank > 0:
        return None
    try:
        decision = decide(samples, config)
    except OSError as error:
        rule = f"what was read of the samples is there ({error})"
        raise _refuse("curate.folder", config.folder, rule, "run the same again") from None
    if not dry_run:
        _write_selections(samples, decision, config)
    with _writing(config.folder):
        page = write_curation_page(Path(config.folder) / PAGE, samples, decision)
    told = {}
    for number, source in enumerate(samples.sources):
        span = samples.span(number)
        if not source.is_apart:
            told[source.name] = {
                "folder": source.url,
                "fingerprint": samples.facts[number].manifest.fingerprint,
                "samples": span.stop - span.start,
                "kept": int(decision.kept[span].sum()),
                "left_out": dict(decision.counts(span)),
            }
    return {
        "selection": config.name,
        "written": not dry_run,
        "sources": told,
        "page": str(page.absolute()),
    }


def _look_at_all(
    samples: Samples, workers: int | None, rank: int, world_size: int, advance: Advance
) -> None:
    missing = [place for place in samples if not samples.facts[place[0]].is_there(place[1])]
    # By number and not by what is missing: processes that begin later see less missing.
    lacking = set(missing)
    mine = [p for n, p in enumerate(samples) if n % world_size == rank and p in lacking]
    total = sum(_size(samples, place) for place in missing)
    done = 0
    workers = workers or len(os.sched_getaffinity(0))
    running: dict[Future, int] = {}

    def collect() -> None:
        nonlocal done
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for task in finished:
            source = samples.sources[running.pop(task)]
            try:
                done += task.result()
            except (OSError, ValueError, EOFError) as error:
                rule = f"its shards can be read ({error})"
                remedy = "bring the file back, or index the folder again"
                raise _refuse(source.key, source.url, rule, remedy) from None
            advance(done, total)

    try:
        with worker_pool(workers) as pool:
            for dataset, shard in mine:
                while len(running) > workers:
                    collect()
                job = samples.facts[dataset].job(shard)
                running[pool.submit(make_facts, *job)] = dataset
            while running:
                collect()
    except BrokenProcessPool:
        rule = "are processes that decode images, and one of them was killed"
        raise _refuse("--workers", workers, rule, "give more memory, or fewer of them") from None
    if rank == 0:
        for place in missing:  # those of the others
            while not samples.facts[place[0]].is_there(place[1]):
                time.sleep(_POLL_SECONDS)
        if done < total:
            advance(total, total)


def _size(samples: Samples, place: tuple[int, int]) -> int:
    return samples.facts[place[0]].manifest.shards[place[1]].samples


def _write_selections(samples: Samples, decision: Decision, config: CurateConfig) -> None:
    rules = config.model_dump(exclude={"name", "folder"}, exclude_defaults=True)
    made_by = f"roseate curate {json.dumps(rules, sort_keys=True)}"
    stays = decision.kept
    for number, source in enumerate(samples.sources):
        if source.is_apart:
            continue
        kept = (stays[span] for span in samples.shard_spans(number))
        folder, manifest = Folder(source.url, source.key), samples.facts[number].manifest
        try:
            write_bitmap(folder, manifest, config.name, kept, made_by)
        except OSError as error:
            rule = f"a selection can be written beside the index ({error})"
            remedy = "make the folder writable, or index its tars into one of yours: roseate index"
            raise _refuse(source.key, source.url, rule, remedy) from None


@contextmanager
def _writing(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        rule = f"can be written to ({error})"
        raise _refuse("curate.folder", folder, rule, "name another folder") from None


def _refuse(key: str, value: object, rule: str, remedy: str) -> ConfigError:
    return ConfigError([Problem(key, value, rule, remedy)])
