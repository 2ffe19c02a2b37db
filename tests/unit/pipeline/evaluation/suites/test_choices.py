"""Texts after prompts that are computed once, against single whole forwards in float64."""

import numpy as np
import pytest

from data_prep.errors import ConfigError
from pipeline.evaluation.asker import Text
from pipeline.evaluation.choices import weigh_choices
from tests.unit.pipeline.evaluation.suites.conftest import noise, words
from tests.unit.pipeline.evaluation.suites.test_asker import by_hand

TEXTS = ["red", "a large blue star of two", "small"]


def few_shot(shots):
    ask = []
    for number in range(shots):
        ask += [noise(f"shot {number}"), words(2 + number)]
    return [*ask, noise("query")]


def test_choices_cost_what_whole_forwards_say_in_float64(asker, objective):
    asks = [few_shot(2), [noise("alone")], [noise("question"), "Question: which? Short answer:"]]
    nats, tokens = weigh_choices(asker(batch_size=3), asks, TEXTS)
    for n, ask in enumerate(asks):
        for k, text in enumerate(TEXTS):
            expected, count = by_hand(objective, Text(ask, text))
            assert nats[n, k] == pytest.approx(expected, rel=1e-4)
            assert tokens[k] == count


def test_neither_batches_nor_other_texts_change_a_choice(asker, monkeypatch):
    asks = [few_shot(n % 3) for n in range(5)]
    whole, _ = weigh_choices(asker(batch_size=5), asks, TEXTS)
    monkeypatch.setattr("pipeline.evaluation.choices.TOKENS_TOGETHER", 1)  # one text at a time
    single, _ = weigh_choices(asker(batch_size=2), asks, TEXTS)
    np.testing.assert_allclose(whole, single, rtol=1e-5)
    alone, _ = weigh_choices(asker(batch_size=1), asks[3:4], TEXTS[1:2])
    np.testing.assert_allclose(whole[3, 1], alone[0, 0], rtol=1e-5)


def test_an_image_is_computed_once_for_all_texts(asker, objective):
    seen = []
    hook = objective.model.vision.register_forward_hook(lambda *call: seen.append(len(call[2])))
    weigh_choices(asker(batch_size=4), [[noise(str(n))] for n in range(6)], TEXTS * 20)
    hook.remove()
    assert seen == [4, 2]


def test_a_black_image_is_the_same_for_all(asker):
    nats, _ = weigh_choices(asker(), [[noise("a")], [noise("b")]], TEXTS, zero_image=True)
    np.testing.assert_allclose(nats[0], nats[1], rtol=1e-6)
    shown, _ = weigh_choices(asker(), [[noise("a")], [noise("b")]], TEXTS)
    assert np.abs(shown[0] - shown[1]).max() > 1e-3


def test_nothing_to_choose_from_costs_nothing(asker):
    nats, tokens = weigh_choices(asker(), [[noise("a")]], [])
    assert nats.shape == (1, 0) and len(tokens) == 0
    assert weigh_choices(asker(), [], TEXTS)[0].shape == (0, 3)


def test_choices_and_prompts_without_positions_are_refused(asker, monkeypatch):
    short = asker()
    monkeypatch.setattr(type(short.model), "max_positions", property(lambda self: 12))
    asks = [[noise("short.png")], [noise("long.png"), "which of them is it then? " * 3]]
    length = short.length(asks[1])
    with pytest.raises(ConfigError) as error:
        weigh_choices(short, asks, TEXTS)
    for part in ("evaluation.data", "positions for, 12", "1 of 2", f"{length} tokens: long.png"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match="1 of 2 have not.*long.png"):
        short.answers(asks)
    assert len(short.answers(asks[:1])) == 1
