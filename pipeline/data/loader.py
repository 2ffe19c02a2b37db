"""The training stream of one rank: order, reading and collating put together."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.errors import ConfigError, Problem
from pipeline.batch_plan import BatchPlan
from pipeline.data.ahead import DataFailure, MicroBatches, Requests, by_thread, by_workers
from pipeline.data.batch import Batch, collate
from pipeline.data.config import DataConfig
from pipeline.data.features import open_features
from pipeline.data.image import ImageFormat
from pipeline.data.order import Order
from pipeline.data.samples import SampleReader
from pipeline.data.sources import open_sources
from pipeline.data.state import DataState
from pipeline.data.text import TextFormat


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
        state: where the stream begins.
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
    ) -> Iterator[list[Batch] | DataFailure]:
        """All micro-batches of each of so many steps from `position` on, read ahead.

        What goes wrong is handed out and not raised, so that the ranks can agree to stop.
        """
        wanted = MicroBatches(partial(self.micro_batch, plan, rank=rank))
        requests = Requests(plan, position, steps)
        if self.config.workers:
            workers, prefetch = self.config.workers, self.config.prefetch_batches
            made = by_workers(wanted, requests, workers, prefetch)
        else:
            made = by_thread(wanted, requests)
        try:
            for step in range(steps):
                self._prepare(plan, rank, position, step, steps)
                batches = [next(made) for _ in range(plan.accumulation_steps)]
                failures = [batch for batch in batches if not isinstance(batch, Batch)]
                yield failures[0] if failures else batches
        finally:
            for dataset in self.datasets.values():
                dataset.stop()

    def check_cache(self, plan: BatchPlan, rank: int) -> None:
        """Refuse a cache that cannot hold what the ranks of a node read at the same time.

        It would fetch the same shards again and again, without a word.

        Raises:
            ConfigError: naming what it takes.
        """
        remote = self._remote_sources()
        if not remote:
            return
        # All lanes come round in so many steps; then what is fetched ahead.
        rounds = -(-self.config.lanes * len(self.datasets) // plan.global_size)
        window = rounds + self.config.remote.ahead_steps
        start, needed = self.state.position, 0
        places = [
            self.order.batch(start + step * plan.global_size, plan.global_size)[plan.part(rank)]
            for step in range(window)
        ]
        for number in remote:
            shards = {s for p in places for s in np.unique(p.shard[p.source == number]).tolist()}
            manifest = self.reader.datasets[number].manifest
            needed += sum(manifest.shards[shard].bytes for shard in shards)
        ranks = int(
            os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1
        )
        if needed * ranks > self.config.remote.cache_bytes:
            rule = (
                f"holds what {ranks} ranks of a node read at the same time, about "
                f"{needed * ranks:,} bytes"
            )
            remedy = "raise it to twice as much, lower data.lanes, or set data.remote.read=ranges"
            value = self.config.remote.cache_bytes
            raise ConfigError([Problem("data.remote.cache_bytes", value, rule, remedy)])

    def _remote_sources(self) -> list[int]:
        """Numbers of the sources whose shards are kept in the cache."""
        if self.config.remote.read == "ranges":
            return []
        return [n for n, dataset in enumerate(self.datasets.values()) if dataset.is_remote]

    def _prepare(self, plan: BatchPlan, rank: int, position: int, step: int, steps: int) -> None:
        """Begin to bring remote shards near, some steps before they are read."""
        remote = self._remote_sources()
        if not remote:
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
