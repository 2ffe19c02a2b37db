"""The checkpoints of a run: which are there, which one is taken, which are kept."""

import logging
import re
import shutil
from collections.abc import Callable

from data_prep.errors import ConfigError, Problem
from data_prep.storage import Folder
from pipeline.checkpoint.container import STATE, BrokenCheckpointError, Checkpoint
from pipeline.config import RunConfig
from pipeline.distributed import DistInfo, sum_over_ranks

log = logging.getLogger("roseate")
NAME = re.compile(r"step_(\d{6,})(?:\.\w+)?")


def open_store(config: RunConfig) -> Folder:
    """Where the checkpoints of a run are: `checkpoint.folder`, or a folder of the run itself."""
    folder = config.checkpoint.folder or str(config.run_folder / "checkpoints")
    return Folder(folder, "checkpoint.folder")


def names(store: Folder) -> list[str]:
    """Names of all checkpoints that were written to their end, newest step first."""
    if store.is_local:
        paths = store.path.glob(f"step_*/{STATE}") if store.path.is_dir() else ()
        found = [path.parent.name for path in paths]
    else:
        found = [path.removesuffix(f"/{STATE}") for path in store.names(f"/{STATE}")]
    found = [name for name in found if NAME.fullmatch(name)]
    # Of several attempts at a step, which only a store keeps, the last one.
    return sorted(found, key=lambda name: (step_of(name), name), reverse=True)


def step_of(name: str) -> int:
    return int(NAME.fullmatch(name)[1])


def find_checkpoint(
    store: Folder, info: DistInfo | None = None, *, before: int | None = None
) -> Checkpoint | None:
    """The newest checkpoint whose files are what was written; every rank must call it.

    The ranks divide the files among them. A broken one is passed over, loudly.

    Args:
        store: of the run.
        info: the ranks; None for one process alone.
        before: only those of earlier steps.
    """
    info = info or DistInfo.alone()
    passed: set[str] = set()
    while True:
        # The main rank lists, so that all look at the same one while others may be written.
        listed = [n for n in names(store) if n not in passed] if info.is_main else []
        listed = [n for n in listed if before is None or step_of(n) < before]
        name = info.share(listed[0] if listed else None)
        if name is None:
            return None
        found, problem = None, None
        try:
            found = Checkpoint(store, name)
            found.verify(info.rank, info.world_size)
        except (BrokenCheckpointError, OSError) as error:
            problem = error
            log.warning("checkpoint %s/%s is broken (%s)", store.url, name, error)
        if not sum_over_ranks(float(problem is not None), info):
            return found
        if info.is_main:
            log.warning("checkpoint %s/%s is passed over; trying the one before", store.url, name)
        passed.add(name)


def discard(store: Folder, name: str) -> None:
    """Remove a checkpoint."""
    # state.json first: what is half removed is no checkpoint.
    store.remove(f"{name}/{STATE}")
    store.remove(name)


def set_aside(store: Folder) -> str | None:
    """Make room for a run that starts anew; for the main rank.

    On a disk the folder gets a number behind its name; in a store, which cannot rename, all are removed.

    Returns:
        what was done, for a person; None where there were no checkpoints.
    """
    found = names(store)
    if not found:
        return None
    if not store.is_local:
        for name in found:
            discard(store, name)
        return f"removed {len(found)} checkpoints of {store.url}"
    number = 1
    while (aside := store.path.with_name(f"{store.path.name}.{number}")).exists():
        number += 1
    store.path.rename(aside)
    return f"the checkpoints that were there are now in {aside}"


def discard_abandoned(store: Folder, is_abandoned: Callable[[dict], bool]) -> None:
    """Remove the checkpoints that the run has left behind by a rollback; for the main rank.

    Args:
        store: of the run.
        is_abandoned: judges the state of one.
    """
    for name in names(store):
        try:
            if is_abandoned(Checkpoint(store, name).state):
                discard(store, name)
        except (BrokenCheckpointError, OSError):
            continue  # passed over later, and told


def no_checkpoint(config: RunConfig) -> ConfigError:
    """What a command says that needs a checkpoint of a run without one."""
    rule = f"has a checkpoint in {open_store(config).url}"
    return ConfigError([Problem("name", config.name, rule, "train first: roseate train CONFIG")])


def prune(store: Folder, *, keep_last: int, keep_every: int, keep_best: bool) -> None:
    """Remove the checkpoints that the policy does not keep."""
    found = names(store)
    keep, scores = set(), {}
    for name in found:
        step = step_of(name)
        steps = {step_of(kept) for kept in keep}
        if step in steps:
            continue  # an earlier attempt at a step that is kept
        if len(steps) < keep_last or (keep_every and step % keep_every == 0):
            keep.add(name)
        if keep_best:
            try:
                score = Checkpoint(store, name).state.get("score")
            except (BrokenCheckpointError, OSError):
                continue
            if score is not None:
                scores.setdefault(score, name)
    if scores:
        keep.add(scores[min(scores)])
    for name in found:
        if name not in keep:
            discard(store, name)


def sweep(store: Folder) -> None:
    """Remove what earlier processes left half-written; nobody may be writing."""
    if store.is_local:
        for path in store.path.glob(".step_*"):
            shutil.rmtree(path, ignore_errors=True)
        return
    whole = {f"{name}/" for name in names(store)}
    for path in store.names(""):
        if NAME.match(path) and path[: path.find("/") + 1] not in whole:
            store.remove(path)
