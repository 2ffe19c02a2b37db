"""The training stream of one rank, and the held-out set: order + shards + collate, read one batch ahead."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pipeline.batch_plan import BatchPlan
from pipeline.config import DataConfig
from pipeline.data.batch import Batch, ImageFormat, TextFormat, collate
from pipeline.data.order import Order
from pipeline.data.shards import ShardReader


class TrainStream:
    """Micro-batches of one rank; what they hold depends on seed and position alone.

    Raises:
        ConfigError: a source is not a dataset folder.
    """

    def __init__(self, config: DataConfig, seed: int, text: TextFormat, image: ImageFormat):
        self.text, self.image = text, image
        self.readers = [
            ShardReader(
                source.path,
                f"data.sources.{name}.path",
                held_out_fraction=config.held_out_fraction,
            )
            for name, source in config.sources.items()
        ]
        weights = [source.weight for source in config.sources.values()]
        self.order = Order(seed, [len(r) for r in self.readers], weights)

    @property
    def fingerprints(self) -> list[str]:
        return [r.manifest.fingerprint for r in self.readers]

    def micro_batch(self, plan: BatchPlan, step: int, rank: int, micro_step: int) -> Batch:
        places = [self.order.locate(p) for p in plan.positions(step, rank, micro_step)]
        samples = [self.readers[source].read(number) for source, number in places]
        return collate(samples, self.text, self.image)

    def steps(self, plan: BatchPlan, rank: int, start: int, end: int) -> Iterator[list[Batch]]:
        """All micro-batches of each step from `start` to before `end`; the next is read ahead."""

        def load(step: int) -> list[Batch]:
            return [self.micro_batch(plan, step, rank, m) for m in range(plan.accumulation_steps)]

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(load, start) if start < end else None
            for step in range(start, end):
                ready = ahead.result()
                if step + 1 < end:
                    ahead = pool.submit(load, step + 1)
                yield ready


class HeldOut:
    """Samples never trained on, in a fixed order.

    Raises:
        ConfigError: the source is not a dataset folder, or nothing is held out.
    """

    def __init__(self, config: DataConfig, text: TextFormat, image: ImageFormat):
        self.text, self.image = text, image
        if config.held_out is not None:
            self.readers = [ShardReader(config.held_out.path, "data.held_out.path")]
        else:
            self.readers = [
                ShardReader(
                    source.path,
                    f"data.sources.{name}.path",
                    held_out_fraction=config.held_out_fraction or 1e-9,
                    held_out=True,
                )
                for name, source in config.sources.items()
            ]

    def __len__(self) -> int:
        return sum(len(r) for r in self.readers)

    def batches(self, count: int, size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        """At most `count` samples in batches of `size`; the same number of batches on every rank.

        The last samples are left out where they do not fill a batch on every rank.
        """
        count = min(count, len(self))
        size = max(1, min(size, count // world_size))
        places = [(r, n) for r in self.readers for n in range(len(r))][:count]
        rounds = count // (size * world_size)
        chunks = [
            places[(i * world_size + rank) * size : (i * world_size + rank + 1) * size]
            for i in range(rounds)
        ]
        return [collate([r.read(n) for r, n in chunk], self.text, self.image) for chunk in chunks]
