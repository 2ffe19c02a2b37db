"""One curation: find what the rules need to know, decide, write a selection beside each index.

What was found is kept by dataset and shard, so that a killed curation goes on, and other rules need not
read the tars again. Several processes divide the shards; the first decides when all are there.
"""

import json
import time
from collections.abc import Callable, Iterator
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
from data_prep.pool import run_jobs
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
    for number, source in samples.to_choose_from():
        span = samples.span(number)
        told[source.name] = {
            "folder": source.url,
            "fingerprint": samples.facts[number].manifest.fingerprint,
            "samples": span.stop - span.start,
            "kept": decision.num_kept(span),
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
    jobs = ((place[0], samples.facts[place[0]].job(place[1])) for place in mine)
    done = 0
    try:
        for dataset, task in run_jobs(workers, make_facts, jobs):
            source = samples.sources[dataset]
            try:
                done += task.result()
            except (OSError, ValueError, EOFError) as error:
                rule = f"its shards can be read ({error})"
                remedy = "bring the file back, or index the folder again"
                raise _refuse(source.key, source.url, rule, remedy) from None
            advance(done, total)
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
    for number, source in samples.to_choose_from():
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
