"""One run from its configuration to its last step. `train` reads from top to bottom; every rank runs it."""

import json
import os
import time
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.distributed import (
    DistInfo,
    rank_from_env,
    start_group,
    stop_group,
    world_size_from_env,
)
from pipeline.engine.fragments import view_engine
from pipeline.engine.start import state_bytes
from pipeline.engine.unfreeze import next_phase
from pipeline.evaluation.task import prepare_training_task
from pipeline.healing.watchdog import Watchdog
from pipeline.loop import LONG, Loop
from pipeline.run import Run
from pipeline.run_check import check_run
from pipeline.tracking.open import open_tracker
from pipeline.tracking.system import NodeMonitor


def train(config: RunConfig, *, fresh: bool = False) -> dict:
    """Train as one of WORLD_SIZE processes, from the newest whole checkpoint of this run if there is one.

    Args:
        config: the run.
        fresh: start at step 0; checkpoints that exist are set aside.

    Returns:
        The summary, as it is also written to {root}/{name}/summary.json.

    Raises:
        ConfigError: the run cannot start as configured.
        DataBudgetError: too many samples cannot be used.
        CannotGoOnError: it cannot go on by itself.
    """
    check_run(config, world_size_from_env())
    tracker = open_tracker(config, is_main=rank_from_env() == 0)
    try:
        task = prepare_training_task(config)
        # The watchdog is to speak first: torch's own time-out names nobody.
        info = start_group(2 * LONG * max(config.healing.hang_seconds, 180.0))
        began = time.perf_counter()
        watches = config.tracking.system_metrics_seconds if config.tracking.uri else 0.0
        with (
            Watchdog(info, config.healing.hang_seconds, config.run_folder) as watchdog,
            NodeMonitor(config.run_folder / "tracking", watches),
        ):
            run = Run(config, info, watchdog, tracker, fresh=fresh, task=task)
            loop = run.build_loop()
            run.begin_tracking(loop)
            while True:
                until = next_phase(config.train.unfreeze, loop.step, config.train.steps)
                spike = loop.run(until)
                if spike:
                    loop = run.roll_back(loop, spike)
                elif loop.step == until < config.train.steps and not loop.early.stopped:
                    loop = run.grow(loop)
                else:
                    break
        finished = loop.step == config.train.steps or loop.early.stopped
        summary = _summarise(loop, run.resumed_at, time.perf_counter() - began)
        if not finished:
            _leave_requeue_marker(info)
        if info.is_main:
            if finished:
                loop.objective.finish(loop.engine.module)
            path = config.run_folder / "summary.json"
            path.write_text(json.dumps(summary, indent=1))
            tracker.file(path)
            tracker.end("FINISHED" if finished else "KILLED")
        return summary
    except BaseException:
        tracker.end("FAILED")
        raise
    finally:
        stop_group()


def _summarise(loop: Loop, resumed_at: int, seconds: float) -> dict:
    steps = loop.config.train.steps
    early = loop.early
    finished = loop.step == steps or early.stopped
    hidden = ("lr", "loss_sum", "position")
    return {
        "run": loop.config.name,
        "objective": loop.config.objective,
        "mlflow_run_id": loop.tracker.run_id,
        "steps": steps,
        "world_size": loop.info.world_size,
        "precision": loop.precision,
        "resumed_at": resumed_at or None,
        "finished": finished,
        **({"stopped_early_at": loop.step} if early.stopped else {}),
        **({"best_step": early.best_step, "best": early.best} if early.best_step else {}),
        **({} if finished else {"stopped_at": loop.step}),
        **{name: value for name, value in loop.report.items() if name not in hidden},
        "seconds": seconds,
        "optimizer_state_bytes": state_bytes(view_engine(loop.engine, loop.stage)),
    }


def _leave_requeue_marker(info: DistInfo) -> None:
    """Tell the batch script that the run stopped early and wants to go on."""
    marker = os.environ.get("ROSEATE_REQUEUE_MARKER")
    if info.is_main and marker:
        Path(marker).touch()
