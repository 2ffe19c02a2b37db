"""flamingo_3b on one GPU: steps against what `roseate plan` says, and each choice against its alternative.

    python -m benchmarks.gpu [--quick] [--device cuda|cpu] [--profile FILE] [--json PATH] [--markdown PATH]

Whole optimizer steps of the project's own loop, in bf16: images are decoded by worker processes, packed rows
of 64 tokens a sample go through towers of CLIP ViT-L/14 and OPT-1.3B in size with random weights, gradients
through DeepSpeed. What is compared stands on the GPU side by side and takes steps in turn. The peer of a step
is the plan's at its MFU of 0.35; that of memory is what it says tensors take, without the 2 GiB and 5 % that
it assumes for the rest. With --quick, and on a CPU, towers are tiny: that tries the benchmark, nothing else.
"""

import argparse
import gc
import io
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.figures import Figure, Pairs, paired, parser, seconds, write
from pipeline.batch_plan import BatchPlan
from pipeline.checkpoint.resume import restore_engine
from pipeline.checkpoint.store import find_checkpoint
from pipeline.config import RunConfig, load_config
from pipeline.curves.mfu import count_flops, device_peak
from pipeline.curves.throughput import Throughput
from pipeline.data.tokenizer import train_tokenizer
from pipeline.distributed import DistInfo, start_group, stop_group
from pipeline.healing.watchdog import Watchdog
from pipeline.objectives import LossScale
from pipeline.plan.gpus import GIB, recognise_gpu
from pipeline.plan.options import PlanOptions
from pipeline.plan.run import RunPlan, plan_run
from pipeline.run import Run
from pipeline.tracking.tracker import NullTracker
from tests.helpers.dataset import write_dataset

SAMPLES, PICTURES, SIDE, WORDS = 8192, 256, 384, 120
LONG = 10**6  # steps: more than are ever taken
MICRO_SIZES = {"cuda": (64, 128, 256), "cpu": (4, 8)}
USUAL = {"cuda": 64, "cpu": 4}  # micro size of all other figures
ALTERNATIVES = {
    "activation checkpointing": "train.activation_checkpointing=true",
    "adamw": "optim.name=adamw",
    "zero3": "engine.strategy=zero3",
}
TINY = (
    "model.vision.architecture={model_type: clip_vision_model, image_size: 28, patch_size: 14, "
    "hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}",
    "model.language.architecture={model_type: opt, vocab_size: 600, hidden_size: 64, ffn_dim: 128, "
    "num_hidden_layers: 2, num_attention_heads: 2, max_position_embeddings: 512, word_embed_proj_dim: 64}",
    "model.resampler={depth: 1, num_latents: 4, num_heads: 2, head_dim: 16}",
    "model.cross_attention={num_heads: 2, head_dim: 16}",
    "data.workers=2",
)


class Bench:
    """Where runs are made.

    Args:
        root: folder with towers and data.
        info: the one process.
        args: of the command line.
    """

    def __init__(self, root: Path, info: DistInfo, args: argparse.Namespace) -> None:
        self.root, self.info, self.args = root, info, args
        self.large = args.device == "cuda" and not args.quick
        self.watchdog = Watchdog(info, 600.0, root / "watched")
        _write_towers(self.config("towers"), args.device)
        for name in ("laion", "cc12m"):
            _write_samples(root / "data" / name, SAMPLES if self.large else 400)

    def config(self, name: str, *more: str) -> RunConfig:
        size = USUAL[self.args.device]
        return load_config(
            "flamingo_3b",
            [
                f"root={self.root}",
                f"name={name}",
                "tracking.uri=",
                "data.held_out_fraction=0.01",
                f"batch={{global_size: {size}, micro_size: {size}}}",
                f"train={{steps: {LONG}, precision: bf16, log_every_steps: {LONG}, "
                f"validate_every_steps: {LONG}, validate_samples: 1}}",
                "optim.warmup_steps=0",
                *(() if self.large else TINY),
                *more,
            ],
        )

    def trainee(self, name: str, *more: str) -> "Trainee":
        return Trainee(self, self.config(name, *more))


class Trainee:
    """One run, some steps at a time.

    Attributes:
        config: of it.
        run, loop: the project's own.
        held: bytes of GPU memory that were held before it was built.
    """

    def __init__(self, bench: Bench, config: RunConfig) -> None:
        self._bench, self.config = bench, config
        self._device = bench.args.device
        self.held = _allocated(self._device)
        began = time.perf_counter()
        with redirect_stdout(None):
            self.run = Run(config, bench.info, bench.watchdog, NullTracker(), fresh=True)
            self.loop = self.run.build_loop()
        # A run would stop after its step, and here nobody asks whether to.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.loop.engine.train()
        gc.collect()
        gc.freeze()  # as `Loop.run` does
        self.built_seconds = time.perf_counter() - began
        self._coming = None
        self.take(config.batch.micro_size)

    def take(self, micro_size: int) -> None:
        """From now on steps of one micro-batch of this size."""
        self.close()
        loop = self.loop
        loop.plan = BatchPlan(micro_size, micro_size, 1)
        self._coming = loop.stream.steps(loop.plan, 0, loop.data.position, LONG)
        self.steps(5)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.loop._take_step(self._coming)

    def step_seconds(self) -> float:
        """Of some, on average."""
        count = 4
        return seconds(lambda: self.steps(count), self._bench.args) / count

    def peak_bytes(self) -> float:
        """The most that its tensors take in a step."""
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.steps(2)
        return _peak(self._device) - self.held

    def plan(self) -> RunPlan:
        """What `roseate plan` says of it."""
        size = self.loop.plan.micro_size
        batch = self.config.batch.model_copy(update={"global_size": size, "micro_size": size})
        config = self.config.model_copy(update={"batch": batch})
        return plan_run(config, PlanOptions(_gpu(self._device), gpus_per_node=1))

    def close(self) -> None:
        """Stop its workers."""
        if self._coming is not None:
            self._coming.close()

    def end(self) -> None:
        """Give everything back."""
        self.close()
        self.loop.engine.destroy()
        self.run = self.loop = self._coming = None
        gc.unfreeze()
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()


def sizes_of_batches(trainee: Trainee, args: argparse.Namespace) -> Iterator[Figure]:
    """Steps and memory by the size of a micro-batch, against the plan."""
    flops = count_flops(trainee.config, "bf16", has_features=False)
    peak = device_peak("auto", trainee.loop.info.device, "bf16")
    for size in MICRO_SIZES[args.device]:
        trainee.take(size)
        planned = trainee.plan()
        trainee.loop.curves.throughput = Throughput(flops, peak)
        times = [trainee.step_seconds() for _ in range(5)]
        point = trainee.loop.curves.throughput.point()
        yield Pairs(times, [planned.chosen.speed.step_seconds] * len(times)).figure(
            f"step of {size} samples / planned ({point['samples_per_second']:.0f} samples/s, MFU "
            f"{point.get('mfu', 0):.2f}, waits for data {point['step_wait_ratio']:.0%})",
            "s",
            1.0 if size >= 64 else None,
        )
        yield from _memory(f"memory of a step of {size} samples / planned", trainee, planned)
    trainee.take(USUAL[args.device])


def alternatives(bench: Bench, usual: Trainee) -> Iterator[Figure]:
    """The usual way (zero2, adamw_8bit) against others, and these against the plan."""
    own = usual.peak_bytes() / GIB
    for name, setting in ALTERNATIVES.items():
        other = bench.trainee(name.replace(" ", "_"), setting)
        times = paired(usual.step_seconds, other.step_seconds, 5, warm_up=False)
        yield times.figure(f"step, adamw_8bit under zero2 / {name}", "s")
        if bench.args.device == "cuda":
            memory = Pairs([own], [other.peak_bytes() / GIB])
            yield memory.figure(f"memory, adamw_8bit under zero2 / {name}", "GiB")
        yield from _memory(f"memory with {name} / planned", other, other.plan())
        other.end()


def parts_of_a_step(trainee: Trainee, args: argparse.Namespace) -> Iterator[Figure]:
    """Forward, backward and update of one batch against whole steps, which also make batches."""
    loop = trainee.loop
    batch = loop.stream.micro_batch(loop.plan, loop.data.position, 0, 0)
    scale = LossScale(batch.num_target_tokens, 1)
    batch = batch.to(loop.info.device, torch.bfloat16)
    loss, parts, whole = torch.zeros(()), {"forward": [], "backward": [], "update": []}, []

    def forward() -> None:
        nonlocal loss
        loss, _ = loop.objective.loss(loop.engine, batch, scale)

    for _ in range(5):
        parts["forward"].append(seconds(forward, args))
        parts["backward"].append(seconds(lambda: loop.engine.backward(loss), args))
        parts["update"].append(seconds(loop.engine.step, args))
        whole.append(trainee.step_seconds())
    for part, times in parts.items():
        yield Pairs(times, whole).figure(f"{part} / step", "s")


def checkpoints(bench: Bench, trainee: Trainee) -> Iterator[Figure]:
    """What a checkpoint holds the steps up, and how long going on from it takes.

    The first one also makes room in the host's memory, once, and does not count.
    """
    loop, args = trainee.loop, bench.args
    stalls, steps, restores = [], [], []
    for _ in range(1 + 2):
        steps.append(100 * trainee.step_seconds())
        stalls.append(seconds(loop.save, args))
        loop.writer.settle(survive=False)
    for _ in range(2):
        found = find_checkpoint(trainee.run.store, bench.info)
        restores.append(seconds(lambda f=found: restore_engine(loop.engine, loop.stage, f), args))
    yield Pairs(stalls[:1], steps[:1]).figure("stall of the first checkpoint / 100 steps", "s")
    yield Pairs(stalls[1:], steps[1:]).figure("stall of a checkpoint / 100 steps", "s", 0.02)
    yield Pairs(restores, [5.0] * len(restores)).figure("restoring the state / limit", "s", 1.0)


def profile(trainee: Trainee, path: Path) -> None:
    """What the time of a step goes to, and where the host waits for the device, into a file."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        trainee.steps(1)
        torch.cuda.synchronize()
    averages = seen.key_averages()
    tables = [
        averages.table(sort_by=key, row_limit=45, max_name_column_width=90)
        for key in ("self_cuda_time_total", "self_cpu_time_total")
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        trainee.steps(1)
        torch.cuda.set_sync_debug_mode("default")
    waits = Counter(f"{w.filename}:{w.lineno}" for w in caught)
    lines = [f"{count:5d} {place}" for place, count in waits.most_common()]
    path.write_text("\n\n".join([*tables, "the host waits at", "\n".join(lines)]))


def _memory(name: str, trainee: Trainee, planned: RunPlan) -> Iterator[Figure]:
    if trainee._device != "cuda":
        return
    chosen = planned.chosen
    bytes_planned = chosen.total - chosen.parts["reserve"]
    yield Pairs([trainee.peak_bytes() / GIB], [bytes_planned / GIB]).figure(name, "GiB", 1.05)


def _gpu(device: str) -> str:
    """Name of this GPU in the planner's table."""
    gpu = recognise_gpu(torch.cuda.get_device_name()) if device == "cuda" else None
    return gpu.name if gpu else "h100-80gb"


def _allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def _write_towers(config: RunConfig, device: str) -> None:
    """Random weights in the sizes of the preset, and a tokenizer."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    for part, kind in (
        (config.model.vision, AutoModel),
        (config.model.language, AutoModelForCausalLM),
    ):
        sizes = AutoConfig.for_model(**part.architecture)
        with torch.device(device):
            kind.from_config(sizes, dtype=torch.bfloat16).save_pretrained(part.path)
    words = [" ".join(_words(seed)) for seed in range(200)]
    train_tokenizer(words, 500).save_pretrained(config.model.language.path)


def _words(seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list("aeioumnrst"), 5)) for _ in range(WORDS)]


def _write_samples(folder: Path, count: int) -> None:
    """Pictures that are neither flat nor noise, each with more words than a sample takes."""
    pictures = []
    for seed in range(PICTURES):
        small = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((SIDE, SIDE), Image.BICUBIC).save(buffer, "JPEG", quality=95)
        pictures.append(buffer.getvalue())
    texts = [" ".join(_words(seed)).encode() for seed in range(PICTURES)]

    def sample(row: int) -> dict[str, bytes]:
        return {"jpg": pictures[row % PICTURES], "txt": texts[row % PICTURES], "json": b"{}"}

    write_dataset(folder, [200] * (count // 200), sample)


def measure(args: argparse.Namespace) -> Iterator[Figure]:
    """All figures, one after another."""
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        info = start_group()
        try:
            bench = Bench(Path(folder), info, args)
            with bench.watchdog, closing(bench.trainee("usual")) as usual:
                print(f"built in {usual.built_seconds:.1f} s", flush=True)
                if args.profile and args.device == "cuda":
                    profile(usual, args.profile)
                yield from sizes_of_batches(usual, args)
                yield from parts_of_a_step(usual, args)
                yield from checkpoints(bench, usual)
                yield from alternatives(bench, usual)
        finally:
            stop_group()


def main() -> None:
    """Measure and write, also what there is when it is interrupted."""
    command = parser("flamingo_3b on one GPU")
    command.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument(
        "--profile", type=Path, metavar="FILE", help="write there what the time of a step goes to"
    )
    args, figures = command.parse_args(), []
    try:
        for figure in measure(args):
            figures.append(figure)
    finally:
        write(figures, args)


if __name__ == "__main__":
    main()
