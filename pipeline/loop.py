"""The training loop: one optimizer step after another, until the phase ends or somebody asks to stop."""

import gc
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch

from pipeline.agreement import Content, Outcome, agree_on_data, agree_on_outcome
from pipeline.batch_plan import BatchPlan
from pipeline.checkpoint.resume import engine_state
from pipeline.checkpoint.writer import CheckpointWriter
from pipeline.config import RunConfig
from pipeline.curves.curves import Curves
from pipeline.data.batch import Batch
from pipeline.data.budget import UnusableLog, check_budget
from pipeline.data.loader import TrainStream
from pipeline.data.state import DataState
from pipeline.distributed import DistInfo, StopRequest
from pipeline.engine.fragments import view_engine
from pipeline.engine.optim import learning_rate
from pipeline.engine.start import DTYPES
from pipeline.errors import CannotGoOnError
from pipeline.evaluation.run import evaluate_in_training
from pipeline.evaluation.task import Task
from pipeline.finetune.early_stop import EarlyStop
from pipeline.healing.events import EventLog
from pipeline.healing.guard import poison, skip_reason
from pipeline.healing.quarantine import Quarantine
from pipeline.healing.spikes import Spike, SpikeDetector
from pipeline.healing.watchdog import Watchdog
from pipeline.objectives import LossScale
from pipeline.progress import RunProgress
from pipeline.seed import seed_step
from pipeline.tracking.tracker import Tracker
from pipeline.validation import held_out_losses

# Times healing.hang_seconds, for what is not done in every step.
LONG = 10.0


@dataclass
class Loop:
    """What a step needs, and where the run stands; alike on all ranks but for `info` and the tracker.

    Attributes:
        config: of the run.
        info: the ranks.
        plan: how the global batch is divided.
        precision: fp32, bf16 or fp16.
        stage: of ZeRO.
        objective: of `pipeline.objectives`.
        engine: of DeepSpeed.
        stream: the data.
        validation: this rank's held-out batches.
        task: what evaluations ask the model; None for none.
        writer: of checkpoints.
        tracker: of the run.
        events: of the run, on the main rank.
        spikes: judges the losses.
        curves: looks at the steps that are logged.
        early: judges held-out figures.
        start_from: checkpoint whose weights the run began with.
        start_needed: it gave weights that are not trained, so that no checkpoint of the run holds them.
        watchdog: ends a hung run.
        stop: the wish to stop early.
        step: optimizer steps done.
        data: where the data stand after them.
        report: last figures.
    """

    config: RunConfig
    info: DistInfo
    plan: BatchPlan
    precision: str
    stage: int
    objective: object
    engine: object
    stream: TrainStream
    validation: list[Batch]
    task: Task | None
    writer: CheckpointWriter
    tracker: Tracker
    events: EventLog | None
    spikes: SpikeDetector
    curves: Curves
    early: EarlyStop
    start_from: str | None
    start_needed: bool
    watchdog: Watchdog
    stop: StopRequest
    step: int
    data: DataState
    report: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._unusable = UnusableLog(self.config.run_folder, self.info.rank)
        self._quarantine = Quarantine(self.config.run_folder, self.info.rank)

    def run(self, until: int) -> Spike | None:
        """Train to step `until`, or until asked to stop, or until the loss has left its curve.

        Returns:
            the spike, where there is one: nothing was saved since it began to be seen.

        Raises:
            DataBudgetError: too many samples cannot be used.
            CannotGoOnError: too many steps were skipped, or checkpoints cannot be written.
        """
        config, info = self.config, self.info
        self.engine.train()
        # What is there now stays: the collector need not look at a million library objects again.
        gc.collect()
        gc.freeze()
        first, spike = self.step, None
        coming = self.stream.steps(self.plan, info.rank, self.data.position, until - first)
        progress = RunProgress(
            config.name, total=config.train.steps, done=first, silent=not info.is_main
        )
        with progress, closing(coming):
            while self.step < until and not self.early.stopped:
                outcome, spike = self._take_step(coming)
                if spike:
                    break
                held_out = self._measure()
                self.early.observe(self.step, held_out)
                progress.step(self.step, f"loss {outcome.loss:.3f}")
                stopping = outcome.asked_to_stop and self.step < config.train.steps
                # The best one is to be kept, so it has to be written.
                best = self.early.best_step == self.step
                ending = stopping or self.step == until or self.early.stopped
                if ending or best or self._is_due(config.checkpoint.every_steps):
                    self.save(held_out)
                if stopping:
                    break
        self.watchdog.beat(self.step, "save", LONG)
        self.writer.settle(survive=False)
        return spike

    def save(self, held_out: dict[str, float] | None = None) -> None:
        """Begin to write a checkpoint of this step, with what was measured at it."""
        self.write(self.state(held_out))

    def state(self, held_out: dict[str, float] | None = None) -> dict:
        """What a checkpoint of this step knows beside masters and moments."""
        held_out = held_out or {}
        return {
            "step": self.step,
            "run_id": self.tracker.run_id,
            "data": self.data.to_json(),
            "config": self.config.model_dump(mode="json", by_alias=True),
            "frozen": self.objective.frozen,
            "precision": self.precision,
            "layout": self.layout(),
            "engine": engine_state(self.engine),
            "held_out_loss": held_out.get("held_out_loss"),
            "score": self.early.score(held_out),
            "early_stop": self.early.state(),
            "start_from": self.start_from,
            "start_needed": self.start_needed,
            "spikes": self.spikes.state(),
            "rollbacks": self.events.num_rollbacks if self.events is not None else None,
        }

    def write(self, state: dict) -> None:
        """Begin to write a checkpoint with this state."""
        self.watchdog.beat(self.step, "save", LONG)
        if error := self.writer.settle():
            self.note("save", problem=str(error))
        self.writer.save(view_engine(self.engine, self.stage), self.stage, state)

    def layout(self) -> dict:
        """How ranks share the work; nothing that is learnt depends on it."""
        return {
            "world_size": self.info.world_size,
            "stage": self.stage,
            "expert_parallel": self.config.engine.expert_parallel,
            "accumulation_steps": self.plan.accumulation_steps,
        }

    def note(self, kind: str, **details: object) -> None:
        """An event of this step, into the file and to the tracker."""
        if self.events is not None:
            event = self.events.add(kind, self.step, self.data.position, **details)
            self.tracker.event(event)

    def _take_step(self, coming: Iterator[list[Batch]]) -> tuple[Outcome, Spike | None]:
        """One optimizer step, or one that is skipped; `step` and `data` stand behind it afterwards.

        Returns:
            (what came of it, the spike that it shows).

        Raises:
            DataBudgetError: too many samples cannot be used.
            CannotGoOnError: too many steps were skipped.
        """
        config = self.config
        self.watchdog.beat(self.step, "data")
        waiting_since = time.perf_counter()
        micro_batches = next(coming)
        waited = time.perf_counter() - waiting_since
        content = agree_on_data(micro_batches, self.info)
        is_logged = self._is_due(config.train.log_every_steps, self.step + 1)
        self.curves.watch(is_logged)
        lr = self._set_learning_rate()
        seed_step(config.seed, self.step, self.info.rank)
        scale = LossScale(content.targets, self.plan.world_size * self.plan.accumulation_steps)
        reports, finite = self._compute(micro_batches, scale)
        self._unusable.add(micro_batches)
        self._count(content, waited)
        self.watchdog.beat(self.step, "agree")
        outcome = agree_on_outcome(
            reports,
            finite,
            asked_to_stop=self.stop.asked,
            scale=scale,
            sources=config.data.sources,
            info=self.info,
        )
        reason = skip_reason(self.engine, loss_was_finite=not outcome.bad_losses)
        if reason == "skip":
            self._quarantine.add(
                self.step, micro_batches, finite, any_loss_bad=bool(outcome.bad_losses)
            )
            self._note_skip(outcome.bad_losses)
        elif reason == "backoff":
            self.note("backoff", loss_scale=self.engine.optimizer.loss_scaler.loss_scale)
        elif spike := self.spikes.observe(self.step, outcome.loss):
            return outcome, spike
        elif is_logged:
            self._log(outcome, lr)
        return outcome, None

    def _count(self, content: Content, waited: float) -> None:
        """A step more.

        Raises:
            DataBudgetError: too many samples cannot be used.
        """
        self.step += 1
        self.data = self.data.advanced(self.plan.global_size, content.replaced)
        self.curves.throughput.add(
            samples=self.plan.global_size,
            tokens=content.tokens,
            images=content.images,
            waited=waited,
        )
        check_budget(
            self.config.data.budget, replaced=self.data.replaced, consumed=self.data.position
        )

    def _log(self, outcome: Outcome, lr: float) -> None:
        """The points of this step; every rank must call it."""
        point = outcome.losses | {
            "lr": lr,
            **self.curves.point(),
            "position": self.data.position,
            "unusable_samples": self.data.replaced,
        }
        self.tracker.metrics(point, self.step)
        shown = {k: v for k, v in point.items() if "/" not in k or k in outcome.losses}
        self.report = shown | self.curves.throughput.since_start()

    def _measure(self) -> dict[str, float]:
        """Held-out figures that are due at this step; every rank must call it."""
        config, held_out = self.config, {}
        if self.validation and self._is_due(config.train.validate_every_steps):
            self.watchdog.beat(self.step, "validate", LONG)
            dtype = DTYPES[self.precision]
            held_out = held_out_losses(self.engine.module, self.validation, self.info, dtype)
            self.tracker.metrics(held_out, self.step)
            self.report |= held_out
        if self.task and self._is_due(config.evaluation.every_steps):
            self.watchdog.beat(self.step, "evaluate", float("inf"))
            held_out |= evaluate_in_training(
                self.task,
                self.objective,
                self.engine.module,
                config,
                self.info,
                self.tracker,
                self.step,
            )
        return held_out

    def _compute(
        self, micro_batches: list[Batch], scale: LossScale
    ) -> tuple[list[dict], list[bool]]:
        """Forward and backward of every micro-batch, and the update at the end of the last.

        Returns:
            (what the objective reports of each, whether its loss was finite).
        """
        reports, finite, dtype = [], [], DTYPES[self.precision]
        for batch in micro_batches:
            self.watchdog.beat(self.step, "forward")
            loss, report = self.objective.loss(
                self.engine, batch.to(self.info.device, dtype), scale
            )
            finite.append(torch.isfinite(loss.detach()))
            self.watchdog.beat(self.step, "backward")
            self.engine.backward(poison(loss))
            self.watchdog.beat(self.step, "step")
            self.engine.step()
            reports.append(report)
        return reports, torch.stack(finite).tolist()

    def _set_learning_rate(self) -> float:
        lr = learning_rate(self.config.optim, self.step, self.config.train.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

    def _note_skip(self, bad_losses: int) -> None:
        """Write the skip down, and end the run if there were too many.

        Raises:
            CannotGoOnError: on every rank.
        """
        self.note("skip", micro_batches_with_bad_loss=bad_losses)
        window = self.config.healing.skip_window
        used = self.events.skips_used(self.step, window) if self.events is not None else 0
        used = self.info.share(used)
        if used > self.config.healing.skip_budget:
            raise CannotGoOnError(
                f"{used} of the last {window} steps were not finite (healing.skip_budget="
                f"{self.config.healing.skip_budget}); their samples are listed in "
                f"{self.config.run_folder / 'quarantine'}. Lower optim.lr, or leave the samples out"
            )

    def _is_due(self, every: int, step: int | None = None) -> bool:
        step = self.step if step is None else step
        return step % every == 0 or step == self.config.train.steps
