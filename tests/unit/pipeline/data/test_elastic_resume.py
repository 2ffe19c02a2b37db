"""A run killed and resumed at random, each time on another number of ranks: nothing lost or repeated."""

import json

import numpy as np

from pipeline.batch_plan import BatchPlan
from pipeline.data.order import Order
from pipeline.data.state import DataState

GLOBAL, POSITIONS, KILLS = 240, 1_000_080, 100
RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 48)
COUNTS = {
    "laion": np.random.default_rng(0).integers(0, 400, 900),
    "cc12m": np.full(40, 1000),
    "few": np.array([1, 0, 3]),
}
WEIGHTS = {"laion": 1.0, "cc12m": 0.2, "few": 0.003}


def resumed_order(saved: str) -> tuple[DataState, Order]:
    """As a new process does it, from the few hundred bytes of a checkpoint."""
    state = DataState.from_json(json.loads(saved))
    order = Order(state.seed, COUNTS, state.weights, lanes=state.lanes, block=state.block)
    return state, order


def test_a_million_positions_over_a_hundred_kills():
    draw = np.random.default_rng()
    fingerprints = {name: "0" * 16 for name in COUNTS}
    start = DataState(11, 0, [(0, WEIGHTS)], fingerprints, lanes=64, block=512)
    saved = json.dumps(start.to_json())
    ends = np.sort(draw.choice(POSITIONS // GLOBAL, KILLS, replace=False)) + 1
    consumed = []
    for end in [*ends.tolist(), POSITIONS // GLOBAL]:
        state, order = resumed_order(saved)
        ranks = int(draw.choice(RANKS))
        splits = [m for m in range(1, GLOBAL // ranks + 1) if GLOBAL // ranks % m == 0]
        plan = BatchPlan(GLOBAL, int(draw.choice(splits)), ranks)
        while state.position < end * GLOBAL:
            batch = order.batch(state.position, GLOBAL)
            parts = [
                batch[plan.part(rank, micro_step)]
                for rank in draw.permutation(ranks)
                for micro_step in range(plan.accumulation_steps)
            ]
            consumed.append(np.concatenate([_identity(part) for part in parts]))
            state = state.advanced(GLOBAL)
        # What was done after the last checkpoint is lost with the process; it is done again.
        saved = json.dumps(state.to_json())
        order.batch(state.position + GLOBAL, GLOBAL)
    found = np.concatenate(consumed)
    assert len(found) == POSITIONS == state.position
    assert np.array_equal(np.sort(found[:, 0]), np.arange(POSITIONS)), "each position once"
    undisturbed = _identity(
        resumed_order(json.dumps(start.to_json()))[1].locate(np.arange(POSITIONS))
    )
    assert np.array_equal(found[np.argsort(found[:, 0])], undisturbed)
    for number, counts in enumerate(COUNTS.values()):
        own = undisturbed[undisturbed[:, 1] == number]
        size = int(counts.sum())
        for epoch in range(len(own) // size):
            once = own[epoch * size : (epoch + 1) * size, 2:]
            assert len(np.unique(once, axis=0)) == size, "every sample once an epoch of its source"


def _identity(places) -> np.ndarray:
    return np.stack([places.position, places.source, places.shard, places.slot], axis=1)
