"""What outlives the loops of a run: its checkpoints and events, and how a loop is built, grown, sent back."""

import gc
import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from data_prep.storage import Folder, write_file
from pipeline.batch_plan import BatchPlan
from pipeline.checkpoint.container import Checkpoint
from pipeline.checkpoint.resume import (
    changed_settings,
    check_frozen,
    check_resume,
    restore_engine,
)
from pipeline.checkpoint.store import discard_abandoned, find_checkpoint, open_store, set_aside
from pipeline.checkpoint.writer import CheckpointWriter
from pipeline.config import RunConfig
from pipeline.curves.curves import Curves
from pipeline.curves.mfu import ModelFlops, count_flops, device_peak
from pipeline.curves.throughput import Throughput
from pipeline.data.held_out import HeldOut
from pipeline.data.loader import TrainStream
from pipeline.data.sources import open_sources
from pipeline.data.state import DataState
from pipeline.distributed import DistInfo, StopRequest
from pipeline.engine.deepspeed_config import build_deepspeed_config, zero_stage
from pipeline.engine.start import DTYPES, divided_loading, resolve_precision, start_engine
from pipeline.engine.unfreeze import unfreeze
from pipeline.errors import CannotGoOnError
from pipeline.evaluation.task import Task
from pipeline.finetune.early_stop import EarlyStop
from pipeline.finetune.start import choose_trainable
from pipeline.healing.events import EventLog
from pipeline.healing.guard import watch_gradients
from pipeline.healing.spikes import Spike, SpikeDetector
from pipeline.healing.watchdog import Watchdog
from pipeline.loop import Loop
from pipeline.objectives import OBJECTIVES
from pipeline.tracking.secrets import redact
from pipeline.tracking.tracker import Tracker
from pipeline.trained import find_base, find_start, take_start


class Run:
    """What outlives the loops of a run: where its checkpoints are, and what has befallen it.

    Args:
        config: of the run.
        info: the ranks.
        watchdog: of this rank.
        tracker: of the run, which `begin_tracking` begins.
        fresh: set checkpoints that are there aside.
        task: of the evaluations within the training.

    Raises:
        ConfigError: nothing can be written where the checkpoints are to be.
    """

    def __init__(
        self,
        config: RunConfig,
        info: DistInfo,
        watchdog: Watchdog,
        tracker: Tracker,
        *,
        fresh: bool,
        task: Task | None = None,
    ) -> None:
        self.config = config
        self.info = info
        self.watchdog = watchdog
        self.tracker = tracker
        self.task = task
        self.stop = StopRequest()
        self.store: Folder = open_store(config)
        self.events = EventLog(config.run_folder) if info.is_main else None
        if fresh and info.is_main and (done := set_aside(self.store)):
            print(done, flush=True)
        self.writer = CheckpointWriter(self.store, config.checkpoint, info, self._committed)
        self.found: Checkpoint | None = None
        if not fresh:
            self._find()
        self.resumed_at = self.found.step if self.found else 0
        # Also one that died before its first checkpoint has used of its budgets.
        self.goes_on = not fresh and bool(self.events and self.events.events)

    def _find_base(self) -> Checkpoint | None:
        """Whose weights the run is to begin with, or those it began with and does not hold itself.

        Raises:
            ConfigError: there is no such checkpoint.
        """
        if self.found:
            return find_start(self.found, self.info)
        name = self.config.train.start_from
        if name is None or self.config.objective != "flamingo":
            return None
        return find_base(name, self.info)

    def build_loop(self) -> Loop:
        """Model, data and engine of the phase that begins at the checkpoint, or at step 0.

        Raises:
            ConfigError: they do not go together, or not with the checkpoint.
        """
        config, info, found = self.config, self.info, self.found
        base, given = self._find_base(), set()
        torch.manual_seed(config.seed)
        plan = BatchPlan(config.batch.global_size, config.batch.micro_size, info.world_size)
        precision = resolve_precision(config.train.precision, info.device)
        stage = zero_stage(config)
        with divided_loading(config, plan, precision):
            objective = OBJECTIVES[config.objective](config, DTYPES[precision])
        stream = TrainStream(
            config.data,
            config.seed,
            objective.text,
            objective.image,
            resume=(found.state["data"], str(found)) if found else None,
            features=objective.features,
        )
        stream.check_cache(plan, info.rank)
        if found:
            check_resume(found, config, objective.frozen)
        if base:
            check_frozen(base, objective.frozen)
            given = take_start(objective.model, base, info)
        choose_trainable(objective.model, config)
        later = unfreeze(objective.model, config.train.unfreeze, found.step if found else 0)
        trained = {n for n, p in objective.model.named_parameters() if p.requires_grad}
        engine = start_engine(config, objective.model.to(info.device), plan, precision)
        watch_gradients(engine)
        throughput = Throughput(*self._flops(precision, objective))
        curves = Curves(engine, stage, info, throughput)
        spikes, early = SpikeDetector(config.healing), EarlyStop(config.train.early_stop)
        if found:
            early.load(found.state.get("early_stop"))
            restore_engine(engine, stage, found, later)
            spikes.load(found.state["spikes"])
            if stream.state.weights[-1][0] == found.state["data"]["position"]:
                spikes.reset()  # other weights of the sources: other losses
        validation = []
        if config.objective == "flamingo":
            held_out = HeldOut(config.data, objective.text, objective.image)
            validation = held_out.batches(
                config.train.validate_samples, plan.micro_size, info.rank, info.world_size
            )
        return Loop(
            config=config,
            info=info,
            plan=plan,
            precision=precision,
            stage=stage,
            objective=objective,
            engine=engine,
            stream=stream,
            validation=validation,
            task=self.task,
            writer=self.writer,
            tracker=self.tracker,
            events=self.events,
            spikes=spikes,
            curves=curves,
            early=early,
            start_from=found.state.get("start_from") if found else str(base) if base else None,
            start_needed=not given <= trained,
            watchdog=self.watchdog,
            stop=self.stop,
            step=found.step if found else 0,
            data=self._data(stream),
        )

    def begin_tracking(self, loop: Loop) -> None:
        """The tracker's run: a new one, or that of the checkpoint, told how it comes to go on.

        Raises:
            ConfigError: MLflow will never take it.
        """
        config, found, tracker = self.config, self.found, self.tracker
        if not self.info.is_main:
            return
        # Also of one that died before its first checkpoint.
        run_id = self.events.run_id if self.goes_on else None
        run_id = run_id or (found.state["run_id"] if found else None)
        goes_on = self.goes_on or found is not None
        tracker.begin(config.name, goes_on=goes_on, run_id=run_id)
        for path in _write_run_files(config, loop.plan, loop.precision):
            tracker.file(path)
        if not goes_on:
            self._tell_data(loop)
        place = getattr(tracker, "url", None) or redact(config.tracking.uri)
        print(f"MLflow run {tracker.run_id} ({place})", flush=True)
        for event in self.events.untold():
            tracker.event(event)
        kind = "restart" if self.goes_on or found else "start"
        loop.note(kind, world_size=self.info.world_size, run_id=tracker.run_id)
        if goes_on:
            job = os.environ.get("SLURM_JOB_ID", "none")
            told = (
                f"step {loop.step}, {self.info.world_size} ranks, {socket.gethostname()}, job {job}"
            )
            tracker.tags({f"restart.{self.events.events[-1].number}": told})
        changed = changed_settings(found, config) if found else {}
        if changed:
            loop.note("config", changed=changed)
            told = ", ".join(f"{k}: {before} -> {now}" for k, (before, now) in changed.items())
            print(f"changed since the checkpoint: {told}", flush=True)

    def roll_back(self, loop: Loop, spike: Spike) -> Loop:
        """Return to the last checkpoint from before a spike; the data go on behind it.

        Where there is none, the run goes on as it is, and the event says so.

        Raises:
            CannotGoOnError: on every rank, when there were too many already.
        """
        config = self.config.healing
        used = self.info.share(self.events.rollbacks_used() if self.events else 0)
        if used >= config.rollback_budget:
            raise CannotGoOnError(
                f"the loss left its curve at step {spike.began} ({spike.loss:.4g} at step "
                f"{spike.step}, z = {spike.z:.1f}) after {used} rollbacks (healing.rollback_budget="
                f"{config.rollback_budget}); lower optim.lr, or look at the data from there on"
            )
        self.watchdog.beat(loop.step, "roll back", float("inf"))
        found = find_checkpoint(self.store, self.info, before=spike.began - config.spike_margin)
        details = {"form": spike.kind, "began": spike.began, "loss": spike.loss, "z": spike.z}
        if found is None:
            loop.note("spike", **details)
            loop.spikes.reset()
            return loop
        if self.events:
            event = self.events.rollback(loop.step, found.step, loop.data.position, **details)
            loop.tracker.event(event)
            print(
                f"loss {spike.loss:.4g} at step {spike.step} has left its curve (z = {spike.z:.1f}, "
                f"since step {spike.began}): back to step {found.step}, the data go on",
                flush=True,
            )
            self._discard_abandoned()
        self.info.barrier()
        self.found = found
        first_of_phase = max(
            [e.step for e in self.config.train.unfreeze if e.step <= loop.step] + [0]
        )
        if found.step < first_of_phase:
            # Less was trained then: another engine.
            return self._rebuild(loop)
        restore_engine(loop.engine, loop.stage, found)
        loop.step = found.step
        loop.spikes.load(found.state["spikes"])
        return loop

    def grow(self, loop: Loop) -> Loop:
        """An engine that trains more; all that the old one held goes through its checkpoint."""
        self.info.barrier()
        self._find()
        return self._rebuild(loop)

    def _rebuild(self, old: Loop) -> Loop:
        data, report = old.data, old.report
        old.engine = old.objective = None
        gc.unfreeze()
        gc.collect()
        self.watchdog.beat(self.found.step, "build", float("inf"))
        loop = self.build_loop()
        loop.data, loop.report = data, report
        return loop

    def _flops(self, precision: str, objective: object) -> tuple[ModelFlops | None, float | None]:
        """FLOPs of the model and peak of all devices, for the main rank's curve of the MFU."""
        config, info = self.config, self.info
        if not info.is_main or config.objective != "flamingo" or not config.tracking.uri:
            return None, None
        peak = device_peak(config.tracking.peak_tflops, info.device, precision)
        if peak is None:
            return None, None
        flops = count_flops(config, precision, has_features=objective.features is not None)
        return flops, peak * info.world_size

    def _tell_data(self, loop: Loop) -> None:
        """The datasets of the run, by their fingerprints."""
        sections = self.config.data.sources
        for name, fingerprint in loop.stream.state.fingerprints.items():
            if name in sections:
                self.tracker.dataset(name, fingerprint, sections[name].path, "training")
        if (held_out := self.config.data.held_out) and self.config.objective == "flamingo":
            (dataset,) = open_sources(self.config.data, held_out=True).values()
            self.tracker.dataset("held_out", dataset.fingerprint, held_out.path, "validation")

    def _committed(self, state: dict, checkpoint: str) -> None:
        """A checkpoint is whole; called by the main rank's thread."""
        step = state["step"]
        tell_progress(step)
        place = self.store.path.absolute() if self.store.is_local else self.store.url
        url = f"{place}/{checkpoint}"
        figures = {"held_out_loss": state["held_out_loss"]} if state["held_out_loss"] else {}
        self.tracker.checkpoint(step, url, figures)
        finished = step == self.config.train.steps or state["early_stop"]["stopped"]
        if finished and self.config.tracking.model != "":
            name = self.config.tracking.model
            name = name or f"{self.config.tracking.experiment}.{self.config.name}"
            self.tracker.register(step, url, name, self.config.tracking.alias)

    def _find(self) -> None:
        """The newest checkpoint that no rollback has left behind."""
        if self.info.is_main:
            self._discard_abandoned()
        self.info.barrier()
        self.found = find_checkpoint(self.store, self.info)

    def _discard_abandoned(self) -> None:
        discard_abandoned(
            self.store, lambda state: self.events.is_abandoned(state["step"], state["rollbacks"])
        )

    def _data(self, stream: TrainStream) -> DataState:
        """Where the data go on: behind what a rollback skipped, if the run had made one from here."""
        if self.found is None:
            return stream.state
        position = stream.state.position
        if self.events:
            known = self.found.state["rollbacks"]
            position = self.events.position_after(self.found.step, position, known)
        return replace(stream.state, position=self.info.share(position))


def tell_progress(step: int) -> None:
    """Tell the batch script the step of the newest whole checkpoint: a restart without progress is its last."""
    path = os.environ.get("ROSEATE_PROGRESS_FILE")
    if path:
        write_file(Path(path), f"{step}\n".encode())


def _write_run_files(config: RunConfig, plan: BatchPlan, precision: str) -> list[Path]:
    folder = config.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    values = config.model_dump(mode="json", by_alias=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    merged = build_deepspeed_config(config, plan, precision)
    (folder / "deepspeed.json").write_text(json.dumps(merged, indent=1))
    return [folder / "config.yaml", folder / "deepspeed.json"]
