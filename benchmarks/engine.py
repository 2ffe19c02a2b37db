"""What the engine costs: a step against a bare loop, a checkpoint against the steps between two, the
optimizer's memory against AdamW's, going on against its limit, healing against a step.

    python -m benchmarks.engine [--quick] [--clock cpu] [--json PATH] [--markdown PATH]

The model is the demo's, on random towers of width 192; 1 process, fp32, ZeRO-0 for the step and ZeRO-2 for
the rest. The bare loop is what one would write by hand: the same batches, forward, backward, clipping,
torch's AdamW, the loss read at the end of every step; no ranks, no checkpoint, no events. Both read the
data through the same stream, whose cost is in benchmarks/loader.py.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from benchmarks.figures import Figure, Pairs, paired, parser, seconds, write
from pipeline.agreement import agree_on_data
from pipeline.checkpoint.resume import restore_engine
from pipeline.checkpoint.store import find_checkpoint
from pipeline.config import RunConfig, load_config
from pipeline.distributed import DistInfo, start_group, stop_group
from pipeline.engine.fragments import view_engine
from pipeline.engine.optim import learning_rate, parameter_groups
from pipeline.engine.start import state_bytes
from pipeline.healing.config import HealingConfig
from pipeline.healing.guard import poison
from pipeline.healing.spikes import SpikeDetector
from pipeline.healing.watchdog import Watchdog
from pipeline.loop import Loop
from pipeline.objectives import FlamingoObjective, LossScale
from pipeline.run import Run
from pipeline.seed import seed_step
from pipeline.tracking.tracker import NullTracker
from tests.helpers.dataset import write_scenes
from tests.helpers.tiny import write_towers

EVERY_STEPS = 100  # steps between two checkpoints, as the goal has it
RESTORE_LIMIT_SECONDS = 5.0
NOTES = """\
- The stall is the time that the step path waits for `save`: the copy of what the rank keeps. The thread that
  then writes, hashes and renames shares the processor with the training where no core is to spare.
- Healing by parts, summed: the poison on every loss, the spike detector, four beats of the watchdog. The
  agreement itself is the reduction that a step makes anyway.
"""


def config_of(root: Path, name: str, *more: str) -> RunConfig:
    return load_config(
        "demo",
        [
            f"root={root}",
            f"name={name}",
            "tracking.uri=",
            "train={steps: 100000, log_every_steps: 100, validate_every_steps: 100000, "
            "precision: fp32, validate_samples: 16}",
            "batch={global_size: 32, micro_size: 16}",
            "optim={name: adamw, warmup_steps: 0, schedule: constant}",
            "engine={strategy: zero0, expert_parallel: 1}",
            "checkpoint.every_steps=1000000",
            *more,
        ],
    )


class Ours:
    """A run of the project, a few steps at a time.

    Args:
        config: of the run.
        info: the one process.
        watchdog: of it.
    """

    def __init__(self, config: RunConfig, info, watchdog: Watchdog) -> None:
        self.run = Run(config, info, watchdog, NullTracker(), fresh=True)
        self.loop: Loop = self.run.build_loop()

    def steps(self, count: int) -> None:
        with redirect_stdout(None):
            until = self.loop.step + count
            self.loop.run(until)


class Bare:
    """The loop that one would write by hand."""

    def __init__(self, config: RunConfig, info) -> None:
        self.config, self.info, self.step = config, info, 0
        self.objective = FlamingoObjective(config)
        self.model = self.objective.model.train()
        groups = parameter_groups(self.model, config.optim.weight_decay)
        betas = (config.optim.beta1, config.optim.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=config.optim.lr, betas=betas)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]

    def steps(self, count: int, loop: Loop) -> None:
        position = self.step * loop.plan.global_size
        coming = loop.stream.steps(loop.plan, 0, position, count)
        for batches in coming:
            targets = agree_on_data(batches, self.info).targets
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config.optim, self.step, self.config.train.steps)
            seed_step(self.config.seed, self.step, 0)
            scale, total = LossScale(targets, len(batches)), 0.0
            for batch in batches:
                loss, report = self.objective.loss(
                    self.model, batch.to(self.info.device, torch.float32), scale
                )
                (loss / len(batches)).backward()
                total = total + report["loss_sum"]
            torch.nn.utils.clip_grad_norm_(self.trained, self.config.optim.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            total.item()
            self.step += 1


def step_overhead(root: Path, info, watchdog: Watchdog, args: argparse.Namespace) -> Figure:
    ours = Ours(config_of(root, "ours"), info, watchdog)
    bare = Bare(config_of(root, "bare"), info)
    # The end of `run` writes a checkpoint, which has a figure of its own.
    ours.loop.save = lambda *_: None
    count, pairs = (6, 3) if args.quick else (20, 7)
    measured = paired(
        lambda: seconds(lambda: ours.steps(count), args) / count,
        lambda: seconds(lambda: bare.steps(count, ours.loop), args) / count,
        pairs,
    )
    return measured.figure("step / step of a bare loop, ZeRO-0", "s", 1.05)


def checkpoint_figures(root: Path, info, watchdog: Watchdog, args: argparse.Namespace) -> list:
    """Stall, healing and restore, with 8-bit moments under ZeRO-2."""
    more = ("engine.strategy=zero2", "optim.name=adamw_8bit")
    ours = Ours(config_of(root, "saved", *more), info, watchdog)
    loop, save = ours.loop, ours.loop.save
    loop.save = lambda *_: None
    count, rounds = (3, 3) if args.quick else (10, 7)
    ours.steps(count)
    steps, stalls, restores, healing = [], [], [], []
    for _ in range(rounds):
        steps.append(seconds(lambda: ours.steps(count), args) / count)
        stalls.append(seconds(save, args))
        loop.writer.settle(survive=False)
        found = find_checkpoint(ours.run.store, info)
        restores.append(seconds(lambda f=found: restore_engine(loop.engine, loop.stage, f), args))
        healing.append(healing_seconds(watchdog, loop.plan.accumulation_steps))
    hundred = [EVERY_STEPS * step for step in steps]
    limits = [RESTORE_LIMIT_SECONDS] * rounds
    name = f"stall of a checkpoint / {EVERY_STEPS} steps"
    return [
        Pairs(stalls, hundred).figure(name, "s", 0.02),
        Pairs(restores, limits).figure("restoring the state / limit", "s", 1.0),
        Pairs(healing, steps).figure("healing, in every step / step", "s", 0.01),
    ]


def healing_seconds(watchdog: Watchdog, micro_steps: int, repeats: int = 50) -> float:
    """What one step pays for it, by parts."""
    detector, loss = SpikeDetector(HealingConfig()), torch.tensor(2.5)
    for step in range(200):
        detector.observe(step, 2.5 + 0.01 * (step % 7))
    begin = time.perf_counter()
    for step in range(repeats):
        detector.observe(200 + step, 2.5 + 0.01 * (step % 7))
        for phase in ("data", "forward", "backward", "agree"):
            watchdog.beat(step, phase)
        for _ in range(micro_steps):
            torch.isfinite(poison(loss))
    return (time.perf_counter() - begin) / repeats


def moments(root: Path, info, watchdog: Watchdog) -> Figure:
    """Bytes of moments after a step."""
    sizes = {}
    for name in ("adamw_8bit", "adamw"):
        more = ("engine.strategy=zero2", f"optim.name={name}")
        ours = Ours(config_of(root, f"bytes_{name}", *more), info, watchdog)
        ours.loop.save = lambda *_: None
        ours.steps(1)
        sizes[name] = sum(state_bytes(view_engine(ours.loop.engine, 2)).values()) / 2**20
    pairs = Pairs([sizes["adamw_8bit"]], [sizes["adamw"]])
    return pairs.figure("moments of adamw_8bit / of adamw", "MiB", 0.30)


@contextmanager
def small_runs() -> Iterator[tuple[Path, DistInfo, Watchdog]]:
    """A folder with towers and data for runs of `config_of`, the one process, and its watchdog."""
    with tempfile.TemporaryDirectory(prefix="runs-") as folder:
        root = Path(folder)
        write_towers(root, width=192, layers=4)
        for name in ("laion", "cc12m"):
            write_scenes(root / "data" / name, 400)
        write_scenes(root / "data" / "held_out", 40, held_out=True)
        info = start_group()
        try:
            with Watchdog(info, 600.0, root / "watched") as watchdog:
                yield root, info, watchdog
        finally:
            stop_group()


def measure(args: argparse.Namespace) -> list[Figure]:
    """All figures."""
    with small_runs() as (root, info, watchdog):
        return [
            step_overhead(root, info, watchdog, args),
            *checkpoint_figures(root, info, watchdog, args),
            moments(root, info, watchdog),
        ]


def main() -> None:
    """Measure and write."""
    args = parser("what the engine, its checkpoints and its healing cost").parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    write(measure(args), args)
    if args.markdown:
        with args.markdown.open("a") as file:
            file.write(f"\n{NOTES}")


if __name__ == "__main__":
    main()
