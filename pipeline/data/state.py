"""What a checkpoint knows of the data: a few hundred bytes, the same on every rank.

The order is a function of the seed, so that the state is only where it was left off and what it was
left off in. It does not know of ranks, workers, micro-batches or steps.
"""

from dataclasses import asdict, dataclass, replace

from data_prep.errors import ConfigError, Problem
from pipeline.data.mixing import WeightsLog

VERSION = 1


@dataclass(frozen=True)
class DataState:
    """Where a run is in its data.

    Attributes:
        seed: of the order.
        position: samples consumed.
        weights: ``[position, {source: weight}]`` from which on they hold.
        fingerprints: of each source, see `pipeline.data.dataset.Dataset`.
        lanes: of the order.
        block: of the order.
        replaced: samples so far that could not be used and counted against the budget.
        version: of the order's definition.
    """

    seed: int
    position: int
    weights: WeightsLog
    fingerprints: dict[str, str]
    lanes: int
    block: int
    replaced: int = 0
    version: int = VERSION

    def to_json(self) -> dict:
        """As the checkpoint keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict) -> "DataState":
        """Back from what the checkpoint kept."""
        log = [(int(position), dict(weights)) for position, weights in value["weights"]]
        return cls(**(value | {"weights": log}))

    def advanced(self, samples: int, replaced: int = 0) -> "DataState":
        """After so many more samples."""
        return replace(self, position=self.position + samples, replaced=self.replaced + replaced)

    def resumed(self, wanted: "DataState", where: str) -> "DataState":
        """This state, to go on with under a configuration that asks for `wanted`.

        Other weights and further sources become an event in the log, from this position on.

        Args:
            wanted: what a new run of the present configuration would begin with.
            where: the checkpoint, for messages.

        Raises:
            ConfigError: seed, order or a dataset is another one; with every difference.
        """
        problems = []
        if self.version != wanted.version:
            rule = f"is the version of the order that {where} was written with ({self.version})"
            remedy = "go on with the version of roseate that wrote it"
            problems.append(Problem("data order version", wanted.version, rule, remedy))
        for key, mine, theirs in (
            ("seed", self.seed, wanted.seed),
            ("data.lanes", self.lanes, wanted.lanes),
            ("data.shuffle_block", self.block, wanted.block),
        ):
            if mine != theirs:
                rule = f"stays as {where} was trained ({mine}); another one is another order"
                remedy = f"set {key}={mine}, or start another run with name=..."
                problems.append(Problem(key, theirs, rule, remedy))
        for name, fingerprint in self.fingerprints.items():
            found = wanted.fingerprints.get(name)
            if found is None:
                rule = f"is a source of {where}; its samples keep their places in the order"
                remedy = "name it again; to draw no more of it is not possible within a run"
                problems.append(Problem(f"data.sources.{name}", None, rule, remedy))
            elif found != fingerprint:
                rule = f"holds the samples that {where} was trained on ({fingerprint})"
                remedy = (
                    "bring the dataset, its bitmaps and held_out_fraction back, or start another "
                    "run with name=..."
                )
                problems.append(Problem(f"data.sources.{name}", found, rule, remedy))
        if problems:
            raise ConfigError(problems)
        log, weights = list(self.weights), wanted.weights[0][1]
        if log[-1][1] != weights:
            # An event that nothing was drawn under leaves no trace.
            log = [event for event in log if event[0] != self.position] + [(self.position, weights)]
        # The sources that were there keep their numbers.
        fingerprints = self.fingerprints | wanted.fingerprints
        return replace(self, weights=log, fingerprints=fingerprints)
