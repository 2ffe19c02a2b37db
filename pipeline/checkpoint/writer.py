"""Writing checkpoints beside the training: the step path pays for one copy, a thread does the rest."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from data_prep.errors import ConfigError, Problem
from data_prep.storage import Folder
from pipeline.checkpoint import store as stored
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.container import (
    INDEX,
    STATE,
    encode_state,
    join_tables,
    rank_file,
    rank_table,
    write_chunks,
)
from pipeline.checkpoint.copies import HostCopies
from pipeline.distributed import DistInfo, sum_over_ranks
from pipeline.engine.fragments import EngineView
from pipeline.engine.logical import Chunk, take_chunks, take_steps
from pipeline.errors import CannotGoOnError

log = logging.getLogger("roseate")


class SaveError(CannotGoOnError):
    """Checkpoints cannot be written; the message says where and why."""


class CheckpointWriter:
    """Writes checkpoints of a run, one at a time; every rank has one.

    The ranks need no word with each other: each writes its file and then its table, and the main rank,
    when it sees all tables, the index and the state, and gives the folder its name.

    Args:
        store: of the run.
        config: section `checkpoint`.
        info: the ranks.
        committed: called by the main rank's thread with the state and the name, when a checkpoint is
            whole.

    Raises:
        ConfigError: nothing can be written there.
    """

    def __init__(
        self,
        store: Folder,
        config: CheckpointConfig,
        info: DistInfo,
        committed: Callable[[dict, str], None] = lambda state, name: None,
    ) -> None:
        self._store = store
        self._config = config
        self._info = info
        self._committed = committed
        self._thread: threading.Thread | None = None
        self._part_done = threading.Event()
        self._error: SaveError | None = None
        self._abandoned = threading.Event()
        self._failures = 0
        self._copies = HostCopies()
        self._attempt = info.share(f"{time.time_ns() // 1000:x}{uuid.uuid4().hex[:4]}")
        if info.is_main:
            self._try_to_write()
            stored.sweep(store)
        info.barrier()

    def save(self, view: EngineView, stage: int, state: dict) -> None:
        """Copy what this rank keeps, and begin to write checkpoint `state["step"]`; every rank calls it.

        Waits first for the one before, if that is still being written.

        Args:
            view: of the engine, after a whole step.
            stage: of ZeRO.
            state: for state.json.

        Raises:
            SaveError: on every rank, when too many in a row have failed.
        """
        self.settle()
        owned = view.owned(self._info.rank, self._info.world_size, stage=stage)
        chunks = self._copies.take(take_chunks(view, owned))
        self._abandoned.clear()
        self._part_done.clear()
        self._thread = threading.Thread(
            target=self._write,
            args=(chunks, take_steps(view), dict(view.shapes), state),
            name="checkpoint",
        )
        self._thread.start()

    def settle(self, *, survive: bool = True) -> SaveError | None:
        """Wait until the last checkpoint is whole, or known to have failed; every rank calls it.

        Args:
            survive: let `checkpoint.failures` in a row pass.

        Returns:
            what went wrong, on every rank, or None.

        Raises:
            SaveError: on every rank, when it failed, and it is one too many.
        """
        if self._thread is None:
            return None
        self._part_done.wait()
        if sum_over_ranks(float(self._error is not None), self._info):
            self._abandoned.set()  # the main rank need not wait for that part
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if not sum_over_ranks(float(error is not None), self._info):
            self._failures = 0
            return None
        self._failures += 1
        error = error or SaveError("another rank cannot write its part of the checkpoint")
        if not survive or self._failures > self._config.failures:
            raise error
        return error

    def _write(self, chunks: list[Chunk], steps: dict, shapes: dict, state: dict) -> None:
        final = f"step_{state['step']:06d}"
        name = f".{final}.{self._attempt}" if self._store.is_local else f"{final}.{self._attempt}"
        try:
            table = self._write_chunks(name, chunks) | {"steps": steps}
            chunks.clear()
            self._store.write(f"{name}/{rank_table(self._info.rank)}", json.dumps(table).encode())
            self._part_done.set()
            if self._info.is_main:
                self._commit(name, final, shapes, state)
        except Exception as error:  # whatever it is, the loop is to know of it, and not this thread
            where = f"{self._store.url}/{final}"
            self._error = SaveError(f"checkpoint {where} cannot be written: {error}")
            log.warning("rank %d: %s", self._info.rank, self._error)
            self._part_done.set()
            if self._info.is_main:
                self._tidy(name)

    def _write_chunks(self, name: str, chunks: list[Chunk]) -> dict:
        file = rank_file(self._info.rank)
        if self._store.is_local:
            path = self._store.path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            table = write_chunks(path, chunks)
            _sync(path)
            return table
        with tempfile.TemporaryDirectory(prefix="roseate-checkpoint-") as folder:
            path = Path(folder) / file
            table = write_chunks(path, chunks)
            self._store.upload(path, f"{name}/{file}")
            return table

    def _commit(self, name: str, final: str, shapes: dict, state: dict) -> None:
        tables = self._gather_tables(name)
        index = json.dumps(join_tables(tables, shapes)).encode()
        self._store.write(f"{name}/{INDEX}", index)
        files = {
            rank_file(rank): {"bytes": table["bytes"], "sha256": table["sha256"]}
            for rank, table in enumerate(tables)
        }
        files[INDEX] = {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()}
        self._store.write(f"{name}/{STATE}", encode_state(state | {"files": files}))
        for rank in range(self._info.world_size):
            self._store.remove(f"{name}/{rank_table(rank)}")
        if self._store.is_local:
            self._rename(self._store.path / name, self._store.path / final)
        self._committed(state, final if self._store.is_local else name)
        config = self._config
        stored.prune(
            self._store,
            keep_last=config.keep_last,
            keep_every=config.keep_every_steps,
            keep_best=config.keep_best,
        )

    def _gather_tables(self, name: str) -> list[dict]:
        """The tables of all ranks, as soon as they are there."""
        deadline = time.monotonic() + self._config.timeout_seconds
        tables: dict[int, dict] = {}
        wait = 0.01
        while len(tables) < self._info.world_size:
            for rank in range(self._info.world_size):
                path = f"{name}/{rank_table(rank)}"
                if rank not in tables and self._store.exists(path):
                    tables[rank] = json.loads(self._store.read(path))
            if len(tables) == self._info.world_size:
                break
            missing = sorted(set(range(self._info.world_size)) - set(tables))
            if self._abandoned.is_set():
                raise OSError(f"rank {missing[0]} could not write its part")
            if time.monotonic() > deadline:
                seconds = self._config.timeout_seconds
                raise OSError(f"no part of ranks {missing} after {seconds} s")
            time.sleep(wait)
            wait = min(1.0, 1.5 * wait)
        return [tables[rank] for rank in range(self._info.world_size)]

    def _rename(self, partial: Path, final: Path) -> None:
        _sync(partial)
        if final.exists():  # of a life before, broken, or of the steps before a rollback
            old = final.with_name(f".{final.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(final, old)
            os.replace(partial, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(partial, final)
        _sync(final.parent)

    def _tidy(self, name: str) -> None:
        try:
            self._store.remove(name)
        except OSError as error:
            log.warning("%s/%s is left over: %s", self._store.url, name, error)

    def _try_to_write(self) -> None:
        """Before the first GPU second, not after a thousand steps."""
        probe = f".probe.{self._attempt}"
        try:
            self._store.write(probe, b"")
            self._store.remove(probe)
        except OSError as error:
            rule = f"is a place to write checkpoints ({error})"
            remedy = "give a folder that the run may write to, or a URL such as s3://bucket/run"
            raise ConfigError(
                [Problem("checkpoint.folder", self._store.url, rule, remedy)]
            ) from None


def _sync(path: Path) -> None:
    """Onto the disk: a rename that outlives a power cut is of no use without what it names."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
