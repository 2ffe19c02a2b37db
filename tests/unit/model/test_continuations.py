"""Texts behind prompts that are computed once, against whole forwards in float64."""

import copy

import pytest
import torch

from model.media import Media, MediaInput
from model.padding import pad_left
from tests.unit.model.tiny import END, FAMILIES, IMAGE, VOCAB, tiny_flamingo, tiny_media

PROMPTS = [[1, 5, IMAGE, 7], [1, IMAGE, 4, END, IMAGE, 9, 3]]


def exact_media():
    media = tiny_media()
    return Media(media.slots, {"image": MediaInput(media.inputs["image"].data.double())})


def random_texts(count):
    """Texts ``[K, S]`` of random lengths with their mask; each ends with the end of its chunk."""
    lengths = torch.randint(1, 6, (count,))
    texts = torch.randint(3, VOCAB, (count, int(lengths.max()) + 1))
    mask = torch.arange(texts.shape[1]) <= lengths[:, None]
    texts[torch.arange(count), lengths] = END
    return texts.masked_fill(~mask, 0), mask


def by_hand(model, media, row, text):
    """Cross entropies of one text behind one prompt, from the logits of a whole forward."""
    ids = torch.tensor([PROMPTS[row] + text])
    media = Media(media.slots[row : row + 1], media.inputs)
    with torch.no_grad():
        mask = torch.ones_like(ids, dtype=torch.bool)
        logits = model(media, ids, mask, ids, with_logits=True).logits[0]
    first = len(PROMPTS[row])
    return -logits.log_softmax(-1)[range(first - 1, ids.shape[1] - 1), text]


@pytest.mark.parametrize("kind", FAMILIES)
def test_texts_behind_a_prompt_cost_what_they_cost_in_a_whole_forward(kind):
    model = tiny_flamingo(kind, experts={"num_experts": 4, "top_k": 2})
    begun = model.continuations(tiny_media(), *pad_left(PROMPTS, 0))
    exact = copy.deepcopy(model).double()
    for _ in range(2):  # the prompt is not used up
        texts, there = random_texts(5)
        found = begun.losses(texts, there)
        assert found.shape == (2, *texts.shape)
        for row in range(2):
            for k in range(5):
                text = texts[k][there[k]].tolist()
                expected = by_hand(exact, exact_media(), row, text).float()
                torch.testing.assert_close(
                    found[row, k, : len(text)], expected, rtol=1e-4, atol=1e-5
                )
                assert (found[row, k, len(text) :] == 0).all()


def test_all_previous_images_are_seen_behind_a_prompt_too():
    model = tiny_flamingo(cross_attention={"attend": "all_previous"}).double()
    media = exact_media()
    texts, there = random_texts(3)
    found = model.continuations(media, *pad_left(PROMPTS, 0)).losses(texts, there)
    text = texts[1][there[1]].tolist()
    expected = by_hand(model, media, 1, text)
    torch.testing.assert_close(found[1, 1, : len(text)].double(), expected, rtol=1e-5, atol=1e-6)


def test_neither_padding_nor_another_text_or_prompt_matters():
    model, media = tiny_flamingo(), tiny_media()
    texts, there = random_texts(4)
    found = model.continuations(media, *pad_left(PROMPTS, 0)).losses(texts, there)
    changed = texts.masked_fill(~there, 7)
    changed[0] = changed[0].where(~there[0], torch.randint_like(changed[0], 3, VOCAB))
    others = [[1, IMAGE, 8, 8], PROMPTS[1]]
    again = model.continuations(media, *pad_left(others, 3)).losses(changed, there)
    torch.testing.assert_close(again[1, 1:], found[1, 1:], rtol=1e-6, atol=1e-6)
    assert not torch.equal(again[0], found[0])


def test_nothing_is_kept_for_a_gradient_or_of_the_routers():
    model = tiny_flamingo(experts={"num_experts": 4, "top_k": 2})
    begun = model.continuations(tiny_media(), *pad_left(PROMPTS, 0))
    assert not begun.losses(*random_texts(2)).requires_grad
    assert not model.routers._logits


def test_a_prompt_that_ends_with_padding_is_refused():
    ids, mask = pad_left(PROMPTS, 0)
    mask[0, -1] = False
    with pytest.raises(ValueError, match="ends with padding; pad prompts on the left"):
        tiny_flamingo().continuations(tiny_media(), ids, mask)


def test_a_language_model_that_keeps_nothing_is_refused(monkeypatch):
    model = tiny_flamingo()
    body = model.language.base_model

    def forward(*args, use_cache, **keywords):
        return type(body).forward(body, *args, use_cache=False, **keywords)

    monkeypatch.setattr(body, "forward", forward)
    with pytest.raises(ValueError, match="LlamaForCausalLM keeps no keys and values"):
        model.continuations(tiny_media(), *pad_left(PROMPTS, 0))
