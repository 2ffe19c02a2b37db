"""The points of a run's curves beyond the losses: parts of the gradient, gates, routers, speed, memory."""

from model.flamingo import Flamingo
from model.router_loads import RouterLoads, router_figures
from pipeline.curves.gates import gate_values
from pipeline.curves.gradients import GradientParts, part_norms
from pipeline.curves.throughput import Throughput
from pipeline.distributed import DistInfo, sum_over_ranks
from pipeline.engine.fragments import view_engine


class Curves:
    """Looks at the steps that are logged, and costs the others nothing.

    Args:
        engine: of DeepSpeed.
        stage: of ZeRO.
        info: the ranks.
        throughput: counts the steps.
    """

    def __init__(self, engine, stage: int, info: DistInfo, throughput: Throughput) -> None:
        self._engine, self._info = engine, info
        self._gradients = GradientParts(view_engine(engine, stage), stage)
        self._flamingo = engine.module if isinstance(engine.module, Flamingo) else None
        self.throughput = throughput

    def watch(self, wanted: bool) -> None:
        """Look at the coming step, or not."""
        self._gradients.watch(wanted)
        if self._flamingo is not None:
            self._flamingo.routers.loads = RouterLoads() if wanted else None

    def point(self) -> dict[str, float]:
        """Figures of the step that was watched; every rank must call it."""
        loads = {}
        if self._flamingo is not None and self._flamingo.routers.loads is not None:
            loads = self._flamingo.routers.loads.sums
        blocks = sorted(loads)
        mine = [*self._gradients.sums(), *(x for b in blocks for x in loads[b].tolist())]
        sums = sum_over_ranks(mine, self._info) if mine else []
        figures = self.throughput.point()
        norm = self._engine.get_global_grad_norm()
        if norm is not None:  # without ZeRO nobody keeps it
            parts = self._gradients.parts
            figures["grad_norm"] = float(norm)
            figures |= part_norms(parts, sums[: len(parts)], float(norm))
        at = len(self._gradients.parts)
        for block in blocks:
            width = len(loads[block])
            shares, entropy = router_figures(sums[at : at + width])
            at += width
            figures |= {f"router/block_{block}/expert_{e}": s for e, s in enumerate(shares)}
            figures[f"router/block_{block}/entropy"] = entropy
        if self._flamingo is not None:
            figures |= gate_values(self._flamingo)
        return figures
