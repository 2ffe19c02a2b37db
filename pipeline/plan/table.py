"""A run plan as tables for people and as a summary for programs."""

import io
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from model.draw import short_count
from pipeline.plan.gpus import GIB
from pipeline.plan.run import RunPlan, StrategyPlan
from pipeline.plan.throughput import UTILISATION

WIDTH = 120
# Key of `StrategyPlan.parts` to what people read, in sections: stays, backward, update, reserve.
SECTIONS = (
    {
        "weights": "trained weights",
        "frozen": "frozen weights",
        "whole": "small weights kept whole",
        "gradients": "gradients",
        "master": "fp32 masters",
        "moments_8bit": "moments of 8 bits",
        "moments_32bit": "moments of 32 bits",
    },
    {
        "buckets": "backward: gradients on their way",
        "gathered": "backward: weights gathered",
        "activations": "backward: activations",
        "working": "backward: logits, one layer",
    },
    {"update": "update: copies of gradients"},
    {"reserve": "context, fragmentation (assumed)"},
)
SECONDS_PER_DAY = 86400
MIB = 2**20


def format_run(run: RunPlan) -> str:
    """Tables of memory and of speed, what is assumed, and a suggestion; plain text of `WIDTH` columns."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    console.print(_memory_table(run))
    console.print(_speed_table(run))
    for line in _notes(run):
        console.print(line, highlight=False, markup=False)
    return console.file.getvalue().rstrip()


def summarise(run: RunPlan) -> dict:
    """The figures by their names; bytes, seconds, FLOPs, dollars."""
    options, flops = run.options, run.flops
    return {
        "gpu": asdict(run.gpu) | {"gpus_per_node": run.gpus_per_node},
        **{"nodes": options.nodes, "gpus": run.trained.world_size},
        **{"precision": run.trained.precision, "optimizer": run.trained.optimizer},
        "tokens_per_sample": run.tokens_per_sample,
        "images_per_sample": options.images,
        "flops_per_sample": {
            name: value / run.samples_per_row
            for name, value in (asdict(flops) | {"model": flops.model}).items()
        },
        "mfu": run.mfu,
        "price_per_hour": run.price_per_hour,
        "strategy": run.config.engine.strategy,
        "suggested": run.best.strategy.name if run.best else None,
        "to_train_first": run.to_train,
        "strategies": {plan.strategy.name: _figures(run, plan) for plan in run.strategies},
    }


def _figures(run: RunPlan, plan: StrategyPlan) -> dict:
    seconds, steps = plan.speed.step_seconds, run.config.train.steps
    samples = run.config.batch.global_size / seconds
    gpu_hours = run.trained.world_size * steps * seconds / 3600
    return {
        "stage": plan.strategy.stage,
        "bytes": plan.parts | {"total": plan.total},
        "host_bytes": plan.host_bytes,
        **{"fits": plan.fits, "runs": plan.runs, "largest_micro_size": plan.largest_micro},
        "compute_seconds": plan.speed.compute_seconds,
        "wire_seconds": plan.speed.wire_seconds,
        "step_seconds": seconds,
        "mfu_reached": run.mfu * plan.speed.compute_seconds / seconds,
        "samples_per_second": samples,
        "tokens_per_second": samples * run.tokens_per_sample,
        "days": steps * seconds / SECONDS_PER_DAY,
        "gpu_hours": gpu_hours,
        "dollars": gpu_hours * run.price_per_hour,
        "kilowatt_hours": gpu_hours * run.gpu.watts / 1000,
    }


def _memory_table(run: RunPlan) -> Table:
    gpu, config = run.gpu, run.config
    # What a small model takes is nothing in GiB.
    most = max(plan.total - plan.parts["reserve"] for plan in run.strategies)
    unit, size = ("GiB", GIB) if most >= GIB else ("MiB", MIB)
    table = Table(
        title=f"{unit} on each of {run.trained.world_size} {gpu.name}, {run.trained.precision}, "
        f"{run.trained.optimizer}, batch.micro_size={config.batch.micro_size}"
    )
    table.add_column("* engine.strategy")
    for plan in run.strategies:
        mark = " *" if plan is run.chosen else ""
        table.add_column(plan.strategy.name + mark, justify="right")
    for section in SECTIONS:
        for key, name in section.items():
            sizes = [plan.parts[key] for plan in run.strategies]
            if any(sizes):
                table.add_row(name, *(_amount(held, size) for held in sizes))
        table.add_section()
    table.add_row("total", *(_amount(plan.total, size) for plan in run.strategies))
    fits = ("yes" if plan.fits else "NO" for plan in run.strategies)
    table.add_row(f"fits {gpu.memory_bytes / GIB:.1f} GiB", *fits)
    if not all(plan.runs for plan in run.strategies):
        table.add_row("the engine takes it", *("yes" if p.runs else "NO" for p in run.strategies))
    table.add_row("largest micro_size", *(str(plan.largest_micro) for plan in run.strategies))
    if any(plan.host_bytes for plan in run.strategies):
        sizes = (_amount(plan.host_bytes, size) for plan in run.strategies)
        table.add_row("in the node's memory, a process", *sizes)
    table.add_section()
    table.add_row("wires, s a step", *(f"{plan.speed.wire_seconds:.3g}" for plan in run.strategies))
    table.add_row("run", *(_time(_figures(run, plan)["days"]) for plan in run.strategies))
    return table


def _speed_table(run: RunPlan) -> Table:
    config, flops, plan = run.config, run.flops, run.chosen
    figures = _figures(run, plan)
    table = Table(title=f"speed with {plan.strategy.name}", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("how")
    sample = flops.model / run.samples_per_row
    forward, backward, again = (
        short_count(value / run.samples_per_row)
        for value in (flops.forward, flops.backward, flops.recomputed)
    )
    steps = config.train.steps
    step = sample * config.batch.global_size
    tokens = run.tokens_per_sample
    rows = [
        ("FLOPs a sample", short_count(sample), f"forward {forward}, backward {backward}"),
        ("recomputed", again, "activation checkpointing; no use to the model"),
        ("FLOPs a text token", short_count(sample / tokens), f"{tokens} tokens a sample"),
        ("FLOPs a step", _flops(step), f"{config.batch.global_size:,} samples"),
        ("FLOPs of the run", _flops(step * steps), f"{steps:,} steps"),
        ("MFU", f"{run.mfu:.3f}", f"stated, of {_peak(run):,.0f} TFLOP/s in {_precision(run)}"),
        ("s a step", f"{figures['step_seconds']:.3g}", f"bound by {plan.speed.bound_by}"),
        ("  computation", f"{figures['compute_seconds']:.3g}", "at that MFU"),
        ("  wires", f"{figures['wire_seconds']:.3g}", "of ZeRO alone, at full speed"),
        ("samples/s", f"{figures['samples_per_second']:,.1f}", "all GPUs"),
        ("tokens/s", f"{figures['tokens_per_second']:,.0f}", "text tokens, padding included"),
        ("run", _time(figures["days"]), "steps alone"),
        ("GPU hours", f"{figures['gpu_hours']:,.1f}", f"{run.trained.world_size} GPUs"),
        ("cost", f"${figures['dollars']:,.2f}", _price(run)),
        ("energy", f"{figures['kilowatt_hours']:,.1f} kWh", f"{run.gpu.watts:g} W a GPU, no more"),
    ]
    for row in rows:
        if not (row[0] == "recomputed" and not flops.recomputed):
            table.add_row(*row)
    return table


def _notes(run: RunPlan) -> list[str]:
    chosen, best = run.chosen, run.best
    notes = []
    if not chosen.fits:
        notes.append(f"{chosen.strategy.name} does not fit at this batch.micro_size.")
    if best is None:
        notes.append("Nothing fits: take a smaller batch.micro_size, more GPUs or larger ones.")
    elif best is not chosen:
        notes.append(
            f"Suggestion: engine.strategy={best.strategy.name} fits, with less on the wires or in "
            f"memory: {_amount(best.total, GIB)} GiB, {best.speed.step_seconds:.3g} s a step."
        )
    better = (best or chosen).largest_micro
    if better > run.config.batch.micro_size:
        notes.append(f"batch.micro_size may be as large as {better} there.")
    if chosen.speed.bound_by == "wires":
        reached = _figures(run, chosen)["mfu_reached"]
        notes.append(
            f"The wires allow an MFU of {reached:.3f} at most: more samples a GPU and pass, or "
            "another strategy, would help."
        )
    if run.to_train:
        keys = ", ".join(run.to_train)
        notes.append(f"Not there yet, so in the sizes of section tower: {keys}.")
    return notes + [
        f"Assumed: an MFU of {UTILISATION:g} with recomputation counted (--mfu), the price "
        "(--price-per-hour), 2 GiB for CUDA and NCCL, 5% fragmentation, every text as long as "
        "data.max_text_tokens (--tokens).",
        "Left out: validation, checkpoints, waiting for data, tokens sent to divided experts and "
        "their uneven load, copies of offloading. docs/plan.md says how it is computed.",
    ]


def _price(run: RunPlan) -> str:
    assumed = "assumed" if run.options.price_per_hour is None else "given"
    return f"at ${run.price_per_hour:g} a GPU and hour, {assumed}"


def _peak(run: RunPlan) -> float:
    return run.gpu.tflops[run.trained.precision]


def _precision(run: RunPlan) -> str:
    precision = run.trained.precision
    return f"{precision} without TF32" if precision == "fp32" else precision


def _amount(held: float, unit: float) -> str:
    return f"{held / unit:,.2f}" if held else "-"


def _time(days: float) -> str:
    for unit, size in (("days", 1), ("h", 1 / 24), ("min", 1 / 1440)):
        if days >= size:
            return f"{days / size:,.1f} {unit}"
    return f"{days * SECONDS_PER_DAY:,.1f} s"


def _flops(number: float) -> str:
    return short_count(number) if number < 1e15 else f"{number:.2e}"
