"""The training stream of one rank, and the held-out set: order, reading and collating put together.

Workers hold no state: what a micro-batch contains is a function of its position, so that any of them
can make any of them.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from data_prep.errors import ConfigError, DataBudgetError, Problem
from pipeline.batch_plan import BatchPlan
from pipeline.config import DataConfig
from pipeline.data.batch import Batch, Sample, collate
from pipeline.data.dataset import Dataset, UnusableSampleError
from pipeline.data.features import open_features
from pipeline.data.image import ImageFormat
from pipeline.data.order import Order
from pipeline.data.remote import RemoteShards
from pipeline.data.samples import SampleReader, decode_sample
from pipeline.data.state import DataState
from pipeline.data.text import TextFormat

HELD_OUT_TRIES = 16


class TrainStream:
    """Micro-batches of one rank; the global batch at a position depends on seed and position alone.

    Args:
        config: section `data`.
        seed: of order and augmentation.
        text: how texts become tokens.
        image: how images become pixels; None leaves them out.
        resume: state that an earlier run left in its checkpoint, and where that lies, for messages.
        features: folder of the tower's features, to be read in place of pixels.

    Raises:
        ConfigError: a source is no dataset folder, not the one of the earlier run, or lacks features;
            with all of these problems.

    Attributes:
        state: where the run is; advanced by whoever consumes the batches.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        text: TextFormat,
        image: ImageFormat | None,
        *,
        resume: tuple[dict, str] | None = None,
        features: Path | None = None,
    ) -> None:
        self.config = config
        datasets = open_sources(config)
        weights = {name: source.weight for name, source in config.sources.items()}
        self.state = DataState(
            seed=seed,
            position=0,
            weights=[(0, weights)],
            fingerprints={name: dataset.fingerprint for name, dataset in datasets.items()},
            lanes=config.lanes,
            block=config.shuffle_block,
        )
        if resume is not None:
            saved, where = resume
            self.state = DataState.from_json(saved).resumed(self.state, where)
        self.datasets = {name: datasets[name] for name in self.state.fingerprints}
        self.order = Order(
            seed,
            {name: dataset.counts for name, dataset in self.datasets.items()},
            self.state.weights,
            lanes=config.lanes,
            block=config.shuffle_block,
        )
        cache = features and open_features(features, self.datasets, config.max_images)
        datasets, in_a_row = [*self.datasets.values()], config.budget.in_a_row
        self.reader = SampleReader(datasets, self.order, text, image, seed, in_a_row, cache)

    def micro_batch(self, plan: BatchPlan, position: int, rank: int, micro_step: int) -> Batch:
        """The part of the global batch at `position` that a rank computes in a micro-step.

        Raises:
            DataBudgetError: too many samples in a row cannot be used.
        """
        places = self.order.batch(position, plan.global_size)[plan.part(rank, micro_step)]
        samples, replaced = self.reader.read(places)
        return collate(
            samples,
            self.reader.image,
            pad_id=self.reader.text.pad_id,
            pack_tokens=self.config.pack_tokens,
            replaced=replaced,
            black=self.reader.features and self.reader.features.black,
        )

    def steps(
        self, plan: BatchPlan, rank: int, position: int, steps: int
    ) -> Iterator[list[Batch] | DataBudgetError]:
        """All micro-batches of each of so many steps from `position` on, read ahead.

        An error of the budget is handed out and not raised, so that the ranks can agree to stop.
        """
        wanted = MicroBatches(self, plan, rank)
        requests = Requests(plan, position, steps)
        make = self._by_workers if self.config.workers else _by_thread
        made = make(wanted, requests)
        for step in range(steps):
            self._prepare(plan, rank, position, step, steps)
            batches = [next(made) for _ in range(plan.accumulation_steps)]
            errors = [batch for batch in batches if isinstance(batch, DataBudgetError)]
            yield errors[0] if errors else batches

    def _by_workers(self, wanted: "MicroBatches", requests: "Requests") -> Iterator[Batch]:
        loader = DataLoader(
            wanted,
            batch_size=None,
            sampler=requests,
            num_workers=self.config.workers,
            prefetch_factor=self.config.prefetch_batches,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            # Not fork: the parent has threads of the communication library and of the tracker.
            multiprocessing_context="forkserver",
        )
        return iter(loader)

    def _prepare(self, plan: BatchPlan, rank: int, position: int, step: int, steps: int) -> None:
        """Begin to bring remote shards near, some steps before they are read."""
        remote = [n for n, d in enumerate(self.datasets.values()) if d.is_remote]
        if not remote or self.config.remote.read == "ranges":
            return
        ahead = self.config.remote.ahead_steps
        # At the start everything up to the horizon, later the step that comes into sight.
        for seen in range(0 if step == 0 else ahead, ahead + 1):
            if step + seen < steps:
                here = position + (step + seen) * plan.global_size
                places = self.order.batch(here, plan.global_size)[plan.part(rank)]
                for number in remote:
                    shards = places.shard[places.source == number]
                    self.reader.datasets[number].prepare(shards)


@dataclass(frozen=True)
class Requests:
    """The (position, micro-step) of every micro-batch of some steps, one after another."""

    plan: BatchPlan
    position: int
    steps: int

    def __len__(self) -> int:
        return self.steps * self.plan.accumulation_steps

    def __getitem__(self, number: int) -> tuple[int, int]:
        step, micro_step = divmod(number, self.plan.accumulation_steps)
        return self.position + step * self.plan.global_size, micro_step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return (self[number] for number in range(len(self)))


@dataclass
class MicroBatches(torch.utils.data.Dataset):
    """(position, micro-step) -> micro-batch of one rank: what torch's workers run."""

    stream: TrainStream
    plan: BatchPlan
    rank: int

    def __getitem__(self, request: tuple[int, int]) -> Batch | DataBudgetError:
        position, micro_step = request
        try:
            return self.stream.micro_batch(self.plan, position, self.rank, micro_step)
        except DataBudgetError as error:
            return error


def _by_thread(wanted: MicroBatches, requests: Requests) -> Iterator[Batch | DataBudgetError]:
    """In this process, a step ahead of its use."""
    ahead = wanted.plan.accumulation_steps
    with ThreadPoolExecutor(1) as pool:
        coming = deque()
        for request in requests:
            coming.append(pool.submit(wanted.__getitem__, request))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _as_it_is(batch: Batch) -> Batch:
    return batch


class HeldOut:
    """Samples never trained on, in a fixed order, without augmentation.

    Raises:
        ConfigError: the source is not a dataset folder, or nothing is held out.
    """

    def __init__(self, config: DataConfig, text: TextFormat, image: ImageFormat) -> None:
        self.text, self.image = text, image
        self.datasets = [*open_sources(config, held_out=True).values()]

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def places(self, count: int) -> list[tuple[Dataset, int]]:
        """The first so many samples."""
        every = ((dataset, n) for dataset in self.datasets for n in range(len(dataset)))
        return [place for place, _ in zip(every, range(count), strict=False)]

    def batches(self, count: int, size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        """At most `count` samples in batches of `size`; the same number of batches on every rank.

        The last samples are left out where they do not fill a batch on every rank.
        """
        count = min(count, len(self))
        size = max(1, min(size, count // world_size))
        places = self.places(count)
        starts = range(
            rank * size, count // (size * world_size) * size * world_size, size * world_size
        )
        chunks = [places[start : start + size] for start in starts]
        return [
            collate([self._sample(*p) for p in chunk], self.image, pad_id=self.text.pad_id)
            for chunk in chunks
        ]

    def _sample(self, dataset: Dataset, number: int) -> Sample:
        """A sample, or the next one after it that can be used."""
        for attempt in range(HELD_OUT_TRIES):
            try:
                raw = dataset.read((number + attempt) % len(dataset))
                (encoded,) = self.text.encode([raw.parts])
                return decode_sample(raw, encoded, self.image, -1, seed=None)
            except UnusableSampleError as error:
                last = error
        raise DataBudgetError(f"{HELD_OUT_TRIES} held-out samples in a row cannot be used: {last}")


def open_sources(config: DataConfig, *, held_out: bool = False) -> dict[str, Dataset]:
    """The datasets of training, or of what is held out from it.

    Raises:
        ConfigError: with the problems of all of them.
    """
    remote = RemoteShards(config.remote.read, Path(config.remote.cache), config.remote.cache_bytes)
    sources, fraction, section = config.sources, config.held_out_fraction, "data.sources."
    if held_out and config.held_out is not None:
        sources, fraction, section = {"held_out": config.held_out}, 0.0, "data."
    elif held_out:
        fraction = fraction or 1e-9
    datasets, problems = {}, []
    for name, source in sources.items():
        try:
            datasets[name] = Dataset(
                source.path,
                f"{section}{name}",
                bitmaps=source.bitmaps,
                held_out_fraction=fraction,
                held_out=held_out,
                remote=remote,
            )
        except ConfigError as error:
            problems += error.problems
    if not sources:
        problems.append(
            Problem("data.sources", {}, "names at least one dataset", "add data.sources.NAME.path")
        )
    if problems:
        raise ConfigError(problems)
    return datasets
