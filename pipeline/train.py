"""The training loop. `train` reads from top to bottom; every rank runs it."""

import gc
import json
import os
import time
from pathlib import Path

import torch
import yaml

from data_prep.errors import DataBudgetError
from pipeline.batch_plan import BatchPlan
from pipeline.checkpoint import (
    check_frozen,
    check_resume,
    find_checkpoint,
    layout,
    read_state,
    save_checkpoint,
)
from pipeline.config import RunConfig
from pipeline.data.ahead import DataFailure
from pipeline.data.batch import Batch
from pipeline.data.budget import UnusableLog, check_budget
from pipeline.data.held_out import HeldOut
from pipeline.data.loader import TrainStream
from pipeline.deepspeed_config import build_deepspeed_config
from pipeline.distributed import (
    DistInfo,
    StopRequest,
    start_group,
    stop_group,
    sum_over_ranks,
    world_size_from_env,
)
from pipeline.engine import (
    DTYPES,
    divided_loading,
    optimizer_state_dtypes,
    resolve_precision,
    start_engine,
)
from pipeline.objectives import OBJECTIVES, LossScale
from pipeline.optim import learning_rate
from pipeline.progress import RunProgress
from pipeline.run_check import check_run
from pipeline.tracking import Tracker, open_tracker
from pipeline.validation import held_out_losses


def train(config: RunConfig, *, fresh: bool = False) -> dict:
    """Train as one of WORLD_SIZE processes, from the newest whole checkpoint of this run if there is one.

    Args:
        config: the run.
        fresh: start at step 0 whatever checkpoints exist.

    Returns:
        The summary, as it is also written to {root}/{name}/summary.json.

    Raises:
        ConfigError: the run cannot start as configured.
    """
    check_run(config, world_size_from_env())
    torch.manual_seed(config.seed)
    info = start_group()
    tracker: Tracker = open_tracker(config, is_main=False)
    try:
        plan = BatchPlan(config.batch.global_size, config.batch.micro_size, info.world_size)
        precision = resolve_precision(config.train.precision, info.device)
        with divided_loading(config, plan, precision):
            objective = OBJECTIVES[config.objective](config, DTYPES[precision])
        folder = config.run_folder / "checkpoints"
        found = None if fresh else find_checkpoint(folder)
        saved = read_state(found) if found else None
        stream = TrainStream(
            config.data,
            config.seed,
            objective.text,
            objective.image,
            resume=(saved["data"], str(found)) if found else None,
            features=objective.features,
        )
        stream.check_cache(plan, info.rank)
        held_out = (
            HeldOut(config.data, objective.text, objective.image)
            if config.objective == "flamingo"
            else None
        )
        if found:
            check_resume(found, layout(config, info.world_size))
            check_frozen(found, objective.frozen)
        engine = start_engine(config, objective.model.to(info.device), plan, precision)
        start, run_id = 0, None
        if found:
            engine.load_checkpoint(str(found), tag="engine", load_module_strict=False)
            start, run_id = saved["step"], saved["run_id"]
        tracker = open_tracker(config, is_main=info.is_main, run_id=run_id)
        if info.is_main:
            for path in _write_run_files(config, plan, precision):
                tracker.file(path)
            print(f"MLflow run {tracker.run_id} ({config.tracking.uri})", flush=True)
        summary = _loop(
            config, objective, stream, held_out, engine, plan, precision, tracker, info, start
        )
        if info.is_main:
            path = config.run_folder / "summary.json"
            path.write_text(json.dumps(summary, indent=1))
            tracker.file(path)
            tracker.end("FINISHED" if summary["finished"] else "KILLED")
        return summary
    except BaseException:
        tracker.end("FAILED")
        raise
    finally:
        stop_group()


def _loop(
    config: RunConfig,
    objective,
    stream: TrainStream,
    held_out: HeldOut | None,
    engine,
    plan: BatchPlan,
    precision: str,
    tracker: Tracker,
    info: DistInfo,
    start: int,
) -> dict:
    dtype = DTYPES[precision]
    steps = config.train.steps
    folder = config.run_folder / "checkpoints"
    stop = StopRequest(info)
    splits = plan.world_size * plan.accumulation_steps
    validation = (
        held_out.batches(config.train.validate_samples, plan.micro_size, info.rank, info.world_size)
        if held_out
        else []
    )
    state = {
        "run_id": tracker.run_id,
        "seed": config.seed,
        "precision": precision,
        "layout": layout(config, info.world_size),
        "frozen": objective.frozen,
    }
    summary = {
        "run": config.name,
        "objective": config.objective,
        "mlflow_run_id": tracker.run_id,
        "steps": steps,
        "world_size": info.world_size,
        "precision": precision,
        "resumed_at": start or None,
        "finished": True,
    }
    began, waited, samples, report = time.perf_counter(), 0.0, 0, {}
    engine.train()
    # What is there now stays: the collector need not look at a million library objects again.
    gc.collect()
    gc.freeze()
    data, unusable = stream.state, UnusableLog(config.run_folder, info.rank)
    coming = stream.steps(plan, info.rank, data.position, steps - start)
    waiting_since = time.perf_counter()
    with RunProgress(config.name, total=steps, done=start, silent=not info.is_main) as progress:
        for step, micro_batches in enumerate(coming, start):
            waited += time.perf_counter() - waiting_since
            targets, replaced = agree_on_data(micro_batches, info)
            scale = LossScale(targets, splits)
            lr = learning_rate(config.optim, step, steps)
            for group in engine.optimizer.param_groups:
                group["lr"] = lr
            # Noise of this step, whoever computes it after however many restarts.
            torch.manual_seed(hash((config.seed, step, info.rank)) % 2**63)
            reports = []
            for batch in micro_batches:
                loss, report = objective.loss(engine, batch.to(info.device, dtype), scale)
                engine.backward(loss)
                engine.step()
                reports.append(report)
            samples += plan.global_size
            unusable.add(micro_batches)
            data = data.advanced(plan.global_size, replaced)
            check_budget(config.data.budget, replaced=data.replaced, consumed=data.position)
            done = step + 1
            last = done == steps

            if done % config.train.log_every_steps == 0 or last:
                report = _join_reports(reports, scale, info)
                if not all(torch.isfinite(torch.tensor(v)) for v in report.values()):
                    raise RuntimeError(f"not a finite loss at step {done}: {report}")
                seconds = time.perf_counter() - began
                report |= {
                    "lr": lr,
                    "grad_norm": float(engine.get_global_grad_norm() or 0.0),
                    "samples_per_second": samples / seconds,
                    "step_wait_ratio": waited / seconds,
                    "position": data.position,
                    "unusable_samples": data.replaced,
                }
                tracker.metrics(report, done)
                main_loss = next(iter(report.values()))
                progress.note = f"loss {main_loss:.3f}"
            if validation and (done % config.train.validate_every_steps == 0 or last):
                losses = held_out_losses(engine.module, validation, info, dtype)
                tracker.metrics(losses, done)
                summary |= losses
            progress.step(done)

            stopping = stop.agreed() and not last
            if held_out and (done % config.checkpoint.every_steps == 0 or last or stopping):
                save_checkpoint(
                    engine,
                    folder,
                    state | {"step": done, "data": data.to_json()},
                    info,
                    keep_last=config.checkpoint.keep_last,
                )
            if stopping:
                _leave_requeue_marker(info)
                summary |= {"finished": False, "stopped_at": done}
                break
            waiting_since = time.perf_counter()

    summary |= {k: v for k, v in report.items() if k not in ("lr", "loss_sum", "position")}
    summary["seconds"] = time.perf_counter() - began
    summary["optimizer_state_bytes"] = optimizer_state_dtypes(engine)
    if info.is_main and summary["finished"]:
        objective.finish(engine.module)
    return summary


def agree_on_data(batches: list[Batch] | DataFailure, info: DistInfo) -> tuple[float, int]:
    """Target tokens of the global batch, and samples replaced in it; every rank must call it.

    Raises:
        DataBudgetError, OSError: on every rank, when any of them could not make its part.
    """
    failed = isinstance(batches, DataFailure)
    mine = [] if failed else batches
    targets = sum(batch.num_target_tokens for batch in mine)
    replaced = sum(r.counted for batch in mine for r in batch.replaced)
    targets, replaced, failures = sum_over_ranks([targets, replaced, failed], info)
    if failed:
        raise batches
    if failures:
        raise DataBudgetError("another rank could not make its part of the batch; it tells why")
    return targets, int(replaced)


def _join_reports(reports: list[dict], scale: LossScale, info: DistInfo) -> dict[str, float]:
    """Means over micro-steps and ranks; the token loss per target token first, where there is one."""
    joined = {
        name: sum_over_ranks(sum(r[name] for r in reports), info) / scale.splits
        for name in reports[0]
    }
    if "loss_sum" in joined:
        joined = {"loss": joined.pop("loss_sum") * scale.splits / scale.target_tokens} | joined
    return joined


def _write_run_files(config: RunConfig, plan: BatchPlan, precision: str) -> list[Path]:
    folder = config.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    values = config.model_dump(mode="json", by_alias=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    merged = build_deepspeed_config(config, plan, precision)
    (folder / "deepspeed.json").write_text(json.dumps(merged, indent=1))
    return [folder / "config.yaml", folder / "deepspeed.json"]


def _leave_requeue_marker(info: DistInfo) -> None:
    """Tell the batch script that the run stopped early and wants to go on."""
    marker = os.environ.get("ROSEATE_REQUEUE_MARKER")
    if info.is_main and marker:
        Path(marker).touch()
