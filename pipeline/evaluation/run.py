"""Suites on a model: read the records, ask on all ranks, judge on the main one, write, and tell MLflow."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.flamingo import Flamingo
from pipeline.checkpoint.container import Checkpoint
from pipeline.config import RunConfig
from pipeline.distributed import DistInfo
from pipeline.engine.deepspeed_config import is_expert_parallel, zero_stage
from pipeline.evaluation.asker import Asker
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.outcome import Outcome
from pipeline.evaluation.results import CheckpointIdentity, Results
from pipeline.evaluation.speed import measure_speed
from pipeline.evaluation.suites import (
    captioning,
    classification,
    fewshot,
    perplexity,
    retrieval,
    vqa,
)
from pipeline.evaluation.task import Task, prepare_task
from pipeline.evaluation.write_results import (
    draw_captions,
    metrics_of,
    plain_figures,
    write_results,
)
from pipeline.objectives import FlamingoObjective
from pipeline.tracking.open import open_tracker
from pipeline.tracking.tracker import Tracker
from pipeline.trained import load_trained

RUN_NAME = "evaluate"
# Suite to what it makes of a model and records.
_MODULES = {
    "captioning": captioning,
    "perplexity": perplexity,
    "vqa": vqa,
    "classification": classification,
    "retrieval": retrieval,
    "fewshot": fewshot,
}
_SETTINGS = (
    "max_new_tokens",
    "num_beams",
    "batch_size",
    "class_form",
    "retrieval_samples",
    "shots",
    "selections",
    "max_samples",
    "resamples",
)


def evaluate(
    config: RunConfig,
    checkpoint: Checkpoint,
    suites: list[str] | None = None,
    info: DistInfo | None = None,
) -> dict:
    """Evaluate a checkpoint; every rank must call it.

    Args:
        config: of the run.
        checkpoint: whose weights are asked.
        suites: default those of section `evaluation`.
        info: the ranks.

    Returns:
        On the main rank all figures, those of the suites under their own names, and where the
        page and the MLflow run are. Written to {root}/{name}/evaluation/step_{step}/.

    Raises:
        ConfigError: a suite and the data do not go together; told before the model is loaded.
    """
    suites, info = suites or list(config.evaluation.suites), info or DistInfo.one()
    task = prepare_task(config, suites)
    folder = config.run_folder / "evaluation" / f"step_{checkpoint.step:06d}"
    tracker = open_tracker(config, is_main=info.is_main, folder=folder / "tracking")
    summary = {"run": config.name, "step": checkpoint.step}
    try:
        trained = load_trained(config, checkpoint, info=info)
        tracker.begin(RUN_NAME, parent=trained.run_id)
        data = task.identity
        name = " + ".join(Path(part).stem for part in data.place.split(" + "))
        tracker.dataset(name, data.fingerprint, data.place, "evaluation")
        objective = trained.objective
        dtype = next(objective.model.parameters()).dtype
        identity = CheckpointIdentity(
            path=str(trained.checkpoint), run=config.name, step=trained.step, run_id=trained.run_id
        )
        results = run_suites(
            suites, task, objective, objective.model, config, info, dtype, identity, in_step=False
        )
        if info.is_main:
            page = write_results(results, task, folder, config, tracker, trained.step)
            draw_captions(results, task, objective, folder, tracker, trained.step, info, dtype)
            summary |= {"page": str(page)} | plain_figures(results, task)
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    if info.is_main:
        summary["mlflow_run_id"] = tracker.run_id
    info.barrier()
    return summary


def evaluate_in_training(
    task: Task,
    objective: FlamingoObjective,
    model: Flamingo,
    config: RunConfig,
    info: DistInfo,
    tracker: Tracker,
    step: int,
) -> dict[str, float]:
    """The suites of section `evaluation` on a model that is being trained; every rank must call it.

    Args:
        task: what they are about.
        objective: how texts and images are read.
        model: the engine's module.
        config: of the run.
        info: the ranks.
        tracker: of the run.
        step: optimizer steps done.

    Returns:
        Figures by ``evaluation/{suite}/{figure}``, the same on all ranks.
    """
    was_training = model.training
    model.eval()
    dtype = next(p for p in model.gated_blocks.parameters()).dtype
    identity = CheckpointIdentity(
        path="", run=config.name, step=step, run_id=tracker.run_id if info.is_main else None
    )
    in_step = is_expert_parallel(config) or zero_stage(config) == 3
    try:
        suites = config.evaluation.suites
        results = run_suites(
            suites, task, objective, model, config, info, dtype, identity, in_step=in_step
        )
    finally:
        model.train(was_training)
    figures: dict[str, float] = {}
    if info.is_main:
        folder = config.run_folder / "evaluation" / f"step_{step:06d}"
        write_results(results, task, folder, config, tracker, step)
        if not in_step:
            draw_captions(results, task, objective, folder, tracker, step, info, dtype)
        figures = metrics_of(results)
    return info.share(figures)


def run_suites(
    suites: list[str],
    task: Task,
    objective: FlamingoObjective,
    model: Flamingo,
    config: RunConfig,
    info: DistInfo,
    dtype: torch.dtype,
    identity: CheckpointIdentity,
    *,
    in_step: bool,
) -> list[Results]:
    """Ask on all ranks and judge on the main one; results are the main rank's."""
    section = config.evaluation
    asker = Asker(
        objective,
        model,
        info,
        dtype=dtype,
        batch_size=section.batch_size,
        max_new_tokens=section.max_new_tokens,
        in_step=in_step,
    )
    results = []
    for suite in suites:
        began, cut_before = time.perf_counter(), asker.cut_texts
        judge = _ask(suite, asker, task, section)
        if info.is_main:
            outcome = judge()
            if cut := asker.cut_texts - cut_before:
                outcome.notes.append(
                    f"{cut} times a text is weighed without its last tokens: the language model has "
                    f"{model.max_positions} positions"
                )
            results.append(
                Results(
                    suite=suite,
                    checkpoint=identity,
                    data=task.identity,
                    settings={k: getattr(section, k) for k in _SETTINGS},
                    figures=outcome.figures,
                    rows=outcome.rows,
                    notes=outcome.notes,
                    wrong_by=outcome.wrong_by,
                    hard_by=outcome.hard_by,
                    seconds=time.perf_counter() - began,
                )
            )
    return results


def _ask(suite: str, asker: Asker, task: Task, section: EvaluationConfig) -> Callable[[], Outcome]:
    """What is left to do when the model has been asked."""
    if suite == "speed":
        return measure_speed(asker, task.records, section)
    module, more = _MODULES[suite], ()
    if suite == "fewshot":
        more = (task.pool,)
    asked = module.ask(asker, task.records, section, *more)
    return lambda: module.judge(asked, task.records, section)
