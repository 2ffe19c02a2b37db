import json
import statistics
import time

import numpy as np
import pytest

from pipeline.healing.config import HealingConfig
from pipeline.healing.spikes import SpikeDetector, median

CONFIG = HealingConfig()
STEPS = np.arange(3000)


def verdicts(losses, config=CONFIG):
    detector = SpikeDetector(config)
    return [detector.observe(step, float(loss)) for step, loss in enumerate(losses)]


def noise(spread):
    return spread * np.random.default_rng(1).standard_normal(len(STEPS))


QUIET = {
    "flat": np.full(3000, 2.5),
    "flat with noise": 2.5 + noise(0.02),
    "nothing at all": np.zeros(3000),
    "fast fall": 2.5 + 8 * np.exp(-STEPS / 20),
    "fall": 2.5 + 8 * np.exp(-STEPS / 100) + noise(0.02),
    "slow fall": 2.5 + 8 * np.exp(-STEPS / 500) + noise(0.02),
    "power law": 12 * (STEPS + 10.0) ** -0.1 + noise(0.02),
    "fall from a plateau": 7 - 3 / (1 + np.exp(-(STEPS - 1000) / 30)) + noise(0.02),
    "fall that ends at once": np.interp(STEPS, [1000, 1100], [7, 4]) + noise(0.02),
    "heavy tails": 2.5 + 0.05 * np.random.default_rng(1).standard_t(2, 3000),
    "waves": 2.5 + 0.1 * np.sin(STEPS / 30) + noise(0.02),
}


@pytest.mark.parametrize("name", QUIET)
def test_a_healthy_curve_is_left_alone(name):
    assert not any(verdicts(QUIET[name]))


@pytest.mark.parametrize("height", [0.4, 1.0, 8.0])
@pytest.mark.parametrize("began", [100, 700, 2000])
def test_a_spike_is_found_where_it_began(began, height):
    losses = 2.5 + noise(0.02)
    losses[began : began + 40] += height
    found = [spike for spike in verdicts(losses) if spike]
    assert found[0].kind == "spike" and found[0].began == began
    assert found[0].step == began + CONFIG.spike_steps - 1
    assert found[0].loss == losses[found[0].step] and found[0].z > CONFIG.spike_z
    # Until the losses come down, no longer.
    assert [spike.step for spike in found] == list(range(found[0].step, began + 40))


def test_a_spike_on_a_falling_curve_is_found_though_the_window_has_seen_such_losses():
    losses = 2.5 + 8 * np.exp(-STEPS / 100) + noise(0.02)
    losses[300:] += 1.0
    assert losses[300] < losses[300 - CONFIG.spike_window]
    first = next(spike for spike in verdicts(losses) if spike)
    assert first.began == 300


def test_outliers_that_are_few_are_left_alone():
    losses = 2.5 + noise(0.02)
    for start in range(200, 2900, 50):
        losses[start : start + CONFIG.spike_steps - 1] += 5.0
    assert not any(verdicts(losses))


def test_a_fall_is_never_an_outlier():
    losses = 7 + noise(0.02)
    losses[1000:] -= 4
    assert not any(verdicts(losses))


def test_a_slow_rise_is_a_drift_from_the_best_place():
    losses = 2.5 + noise(0.02) + 0.001 * np.clip(STEPS - 1000, 0, None)
    first = next(spike for spike in verdicts(losses) if spike)
    assert first.kind == "drift" and first.began < 1200
    assert first.step < 1000 + 800, "long before 1 nat is lost"


def test_zero_turns_it_off():
    losses = np.r_[np.full(200, 2.5), np.full(200, 9.0)]
    assert not any(verdicts(losses, HealingConfig(spike_z=0)))


def test_nothing_is_judged_before_half_the_window():
    losses = np.r_[np.full(20, 2.5), np.full(200, 9.0)]
    assert not any(verdicts(losses))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(loss):
    with pytest.raises(ValueError, match="the loss of step 7 is .*only finite losses are judged"):
        SpikeDetector(CONFIG).observe(7, loss)


def test_a_restored_detector_says_the_same_to_the_bit():
    losses = 2.5 + 8 * np.exp(-STEPS / 100) + noise(0.02)
    losses[500:506] += 3.0
    losses[900:] += 3.0
    whole = verdicts(losses)
    # In the middle of a window, of outliers, of a spike.
    for cut in (40, 503, 905, 912):
        detector = SpikeDetector(CONFIG)
        for step in range(cut):
            detector.observe(step, losses[step])
        kept = json.loads(json.dumps(detector.state()))
        other = SpikeDetector(CONFIG)
        other.load(kept)
        assert [other.observe(s, losses[s]) for s in range(cut, 3000)] == whole[cut:]
    assert len(json.dumps(kept)) < 4096


def test_the_verdict_is_that_of_the_formula_written_out():
    losses = list(2.5 + 8 * np.exp(-STEPS[:400] / 100) + noise(0.02)[:400])
    config = HealingConfig(spike_window=32, spike_steps=1, spike_z=4)
    losses[200] += 0.5
    first = next(spike for spike in verdicts(losses, config) if spike)
    window = losses[first.step - 32 : first.step]
    slope = (statistics.median(window[16:]) - statistics.median(window[:16])) / 16
    carried = [loss + slope * (32 - i) for i, loss in enumerate(window)]
    middle = statistics.median(carried)
    spread = 1.4826 * statistics.median(abs(loss - middle) for loss in carried)
    expected = max(middle, statistics.median(window[-8:]))
    spread = max(spread, 0.01 * expected)
    assert first.step == 200 and first.z == pytest.approx((losses[200] - expected) / spread)


def test_forgetting_begins_anew():
    detector = SpikeDetector(CONFIG)
    for step in range(200):
        detector.observe(step, 2.5)
    detector.reset()
    assert not any(detector.observe(step, 9.0) for step in range(200, 400))


def test_a_step_costs_far_less_than_a_hundredth_of_a_step():
    detector = SpikeDetector(CONFIG)
    losses = (2.5 + noise(0.02)).tolist()
    for step in range(300):
        detector.observe(step, losses[step])
    began = time.thread_time()
    for step in range(300, 1300):
        detector.observe(step, losses[step])
    assert (time.thread_time() - began) / 1000 < 1e-3


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17])
def test_the_median_is_numpys(size):
    values = np.random.default_rng(size).standard_normal(size)
    before = values.copy()
    assert median(values) == np.median(values) and np.array_equal(values, before)
