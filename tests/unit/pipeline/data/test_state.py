"""The state is small, goes through JSON, and refuses another order or another dataset."""

import json

import pytest

from data_prep.errors import ConfigError
from pipeline.data.state import DataState

PRINTS = {"laion": "0123456789abcdef", "cc12m": "fedcba9876543210"}


def state(**changes) -> DataState:
    values = dict(seed=3, position=1000, weights=[(0, {"laion": 1.0, "cc12m": 0.2})])
    return DataState(**values | {"fingerprints": PRINTS, "lanes": 8, "block": 64} | changes)


def fresh(**changes) -> DataState:
    return state(position=0, **changes)


def test_it_comes_back_from_json_and_is_small():
    sources = {f"source_{i:02d}": f"{i:016x}" for i in range(8)}
    log = [(p, dict.fromkeys(sources, 0.125)) for p in (0, 10**9)]
    large = state(fingerprints=sources, weights=log, position=10**12, replaced=10**6)
    text = json.dumps(large.to_json())
    assert DataState.from_json(json.loads(text)) == large
    assert len(text) < 1024


def test_going_on_keeps_everything():
    assert state().resumed(fresh(), "step_5") == state()
    assert state().advanced(64, 2) == state(position=1064, replaced=2)


def test_other_weights_are_an_event_from_here_on():
    weights = {"laion": 1.0, "cc12m": 1.0}
    resumed = state().resumed(fresh(weights=[(0, weights)]), "step_5")
    assert resumed.weights == [(0, {"laion": 1.0, "cc12m": 0.2}), (1000, weights)]
    again = resumed.resumed(fresh(), "step_5")
    assert again.weights == [*state().weights, (1000, state().weights[0][1])], "no step was between"


def test_a_source_may_join_behind_those_that_were_there():
    prints = {"coco": "1" * 16, **PRINTS}
    weights = {"coco": 0.5, "laion": 1.0, "cc12m": 0.2}
    resumed = state().resumed(fresh(fingerprints=prints, weights=[(0, weights)]), "step_5")
    assert [*resumed.fingerprints] == ["laion", "cc12m", "coco"]
    assert resumed.weights[-1] == (1000, weights)


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"seed": 4}, "seed", "stays as step_5 was trained .3."),
        ({"lanes": 16}, "data.lanes", "set data.lanes=8"),
        ({"block": 1}, "data.shuffle_block", "set data.shuffle_block=64"),
        ({"version": 2}, "data order version", "go on with the version of roseate"),
        (
            {"fingerprints": PRINTS | {"laion": "f" * 16}},
            "data.sources.laion",
            "holds the samples that step_5 was trained on .0123456789abcdef.",
        ),
        (
            {"fingerprints": {"laion": PRINTS["laion"]}},
            "data.sources.cc12m",
            "keep their places in the order",
        ),
    ],
)
def test_another_order_is_refused_by_key(changes, key, message):
    with pytest.raises(ConfigError, match=message) as caught:
        state().resumed(fresh(**changes), "step_5")
    assert [p.key for p in caught.value.problems] == [key]


def test_all_differences_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        state().resumed(fresh(seed=1, lanes=1, fingerprints=dict.fromkeys(PRINTS, "0")), "s")
    assert len(caught.value.problems) == 4
