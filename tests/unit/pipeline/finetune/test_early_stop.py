import pytest

from pipeline.finetune.config import EarlyStopConfig
from pipeline.finetune.early_stop import EarlyStop


def watch(values, **settings):
    early = EarlyStop(EarlyStopConfig(**settings))
    for step, value in enumerate(values, 1):
        early.observe(step, {"held_out_loss": value, "other": -value})
        if early.stopped:
            return early, step
    return early, None


@pytest.mark.parametrize(
    ("values", "settings", "stops", "best"),
    [
        ([5, 4, 3, 2], {"patience": 1}, None, 4),
        ([5, 4, 4, 4], {"patience": 2}, 4, 2),
        ([5, 4, 6, 3, 6, 6], {"patience": 2}, 6, 4),
        ([5.0, 4.9, 4.8, 4.7], {"patience": 2, "min_delta": 0.5}, 3, 1),
        ([1, 2, 1, 1], {"patience": 2, "mode": "max"}, 4, 2),
        ([5, 4, 6, 6], {"patience": 2, "metric": "other", "mode": "max"}, 4, 2),
        ([5, 6, 7], {"patience": 2, "metric": "absent"}, None, None),
    ],
)
def test_it_stops_where_one_would_by_hand(values, settings, stops, best):
    early, step = watch(values, **settings)
    assert (step, early.best_step) == (stops, best)


@pytest.mark.parametrize("cut", range(1, 6))
def test_its_state_goes_on_as_if_nothing_had_been(cut):
    values, settings = [5, 4, 6, 3, 6, 6, 6], {"patience": 2}
    early, _ = watch(values[:cut], **settings)
    again = EarlyStop(EarlyStopConfig(**settings))
    again.load(early.state())
    for step, value in enumerate(values[cut:], cut + 1):
        again.observe(step, {"held_out_loss": value})
        if again.stopped:
            break
    assert (step, again.best_step, again.best) == (6, 4, 3)


def test_without_a_setting_it_never_stops_and_the_loss_is_the_score():
    early = EarlyStop(None)
    for step in range(20):
        early.observe(step, {"held_out_loss": float(step)})
    assert not early.stopped and early.score({"held_out_loss": 2.0}) == 2.0


def test_the_score_is_less_for_the_better():
    early = EarlyStop(EarlyStopConfig(metric="a", mode="max"))
    assert early.score({"a": 3.0}) == -3.0 and early.score({}) is None


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"min_delta": -1}, {"mode": "best"}])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        EarlyStopConfig(**wrong)
