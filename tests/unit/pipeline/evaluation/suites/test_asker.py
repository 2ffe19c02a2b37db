"""Likelihoods and texts of prompts, against the model called by hand, one prompt at a time, in float64."""

import copy

import numpy as np
import pytest
import torch

from data_prep.errors import ConfigError
from pipeline.evaluation.asker import Asker, Text
from pipeline.prompts import encode_prompts
from tests.unit.pipeline.evaluation.suites.conftest import Noise, captions, noise, words


def by_hand(objective, text: Text) -> tuple[float, int]:
    """Summed negative log-likelihood in float64, from the logits of a whole forward."""
    model = copy.deepcopy(objective.model).double()
    parts = [p if isinstance(p, str) else p.open() for p in text.ask]
    prompt = encode_prompts(objective.text, objective.image, [parts])
    tokens = objective.text.tokenizer(text.text, add_special_tokens=False)["input_ids"]
    tokens += objective.text.end_ids if text.ends else []
    ids = torch.cat([prompt.input_ids, torch.tensor([tokens])], dim=1)
    media = prompt.media(torch.device("cpu"), torch.float64)
    with torch.no_grad():
        mask = torch.ones_like(ids, dtype=torch.bool)
        logits = model(media, ids, mask, ids, with_logits=True).logits[0]
    first = prompt.input_ids.shape[1]
    log_p = logits.log_softmax(-1)
    return -sum(float(log_p[first + n - 1, t]) for n, t in enumerate(tokens)), len(tokens)


@pytest.mark.parametrize("ends", [True, False])
def test_likelihoods_equal_those_of_single_prompts_in_float64(asker, objective, ends):
    texts = [
        Text([noise("a")], words(2), ends),
        Text([noise("b"), words(3), noise("c"), "a"], words(6), ends),
        Text([noise("d"), "Question: which? Short answer:"], words(1), ends),
    ]
    nats, tokens = asker(batch_size=3).nats(texts)
    expected = [by_hand(objective, text) for text in texts]
    np.testing.assert_allclose(nats, [e[0] for e in expected], rtol=1e-4)
    assert tokens.tolist() == [e[1] for e in expected]


def test_batches_do_not_change_what_is_found(asker):
    texts = [Text([noise(str(n))], words(1 + n % 5)) for n in range(7)]
    whole, _ = asker(batch_size=7).nats(texts)
    single, _ = asker(batch_size=1).nats(texts)
    np.testing.assert_allclose(whole, single, rtol=1e-5)
    asks = [t.ask for t in texts]
    assert asker(batch_size=7).answers(asks) == asker(batch_size=2).answers(asks)


def test_an_image_behind_the_text_must_not_matter(asker):
    """What another prompt of the batch shows must not either."""
    one, text = noise("one"), words(4)
    first = asker().nats([Text([one], text), Text([noise("x")], words(9))])[0][0]
    second = asker().nats([Text([one], text), Text([noise("y")], words(2))])[0][0]
    assert first == pytest.approx(second, rel=1e-6)
    other = asker().nats([Text([noise("other")], text)])[0][0]
    assert first != pytest.approx(other, rel=1e-4), "the image itself must matter"


def test_a_black_image_is_the_control(asker):
    text, black = words(5), Noise("black", _black())
    control = asker().nats([Text([noise("a")], text)], zero_image=True)[0]
    np.testing.assert_allclose(control, asker().nats([Text([black], text)])[0], rtol=1e-5)


def _black():
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def test_image_features_are_unit_vectors_of_the_frozen_tower(asker, objective):
    images = [noise(str(n)) for n in range(5)]
    found = asker().image_features(images)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)
    pixels = encode_prompts(objective.text, objective.image, [[images[3].open()]])
    media = pixels.media(torch.device("cpu"), torch.float32).inputs["image"].data
    with torch.no_grad():
        patches = objective.model.vision(media[0])[0].double()
    mean = patches.mean(0)
    np.testing.assert_allclose(found[3], mean / mean.norm(), rtol=1e-4, atol=1e-6)


def test_an_image_that_cannot_be_decoded_is_named(asker):
    broken = Noise("broken/7.png", b"no image")
    with pytest.raises(ConfigError, match="(?s)broken/7.png.*can be decoded"):
        asker().answers([[noise("a")], [broken]])


def test_a_prompt_has_a_length_without_its_images_being_opened(asker):
    assert (
        asker().length([noise("a"), "red", noise("b")])
        == len(asker().text.tokenizer("red", add_special_tokens=False)["input_ids"]) + 4
    )


def test_nothing_asked_is_nothing_found(asker):
    nats, tokens = asker().nats([])
    assert len(nats) == len(tokens) == 0 and asker().answers([]) == []
    assert isinstance(asker(), Asker) and len(captions(2)) == 2


def test_texts_without_positions_are_cut_and_counted(asker, monkeypatch):
    short = asker()
    image, long, brief = noise("a"), " ".join(["red circle"] * 30), "red"
    _, whole = short.nats([Text([image], long), Text([image], brief)])
    assert short.cut_texts == 0
    monkeypatch.setattr(type(short.model), "max_positions", property(lambda self: 20))
    _, cut = short.nats([Text([image], long), Text([image], brief)])
    assert short.cut_texts == 1
    assert cut[0] == 20 - short.length([image]) < whole[0] and cut[1] == whole[1]
