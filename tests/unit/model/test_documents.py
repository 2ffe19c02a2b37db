"""Packed rows: documents of a row see nothing of each other, and the loss is that of separate rows."""

import pytest
import torch

from model.documents import find_pairs, positions_in_documents
from model.media import Media, MediaInput, media_mask
from tests.unit.model.tiny import END, FAMILIES, IMAGE, VOCAB, tiny_flamingo

EXPERTS = {"num_experts": 4, "top_k": 2, "every": 1}
LENGTHS, IMAGES = (7, 5, 9, 4, 6), (1, 2, 1, 0, 3)


def documents(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Tokens and pixels of documents with a text before the first image."""
    draw = torch.Generator().manual_seed(seed)
    texts, pixels = [], []
    for length, count in zip(LENGTHS, IMAGES, strict=True):
        ids = torch.randint(3, VOCAB, (length,), generator=draw)
        ids[1 : 1 + count] = IMAGE
        ids[-1] = END
        texts.append(ids)
        pixels.append(torch.randn(count, 1, 3, 16, 16, generator=draw))
    return texts, pixels


def batch(texts, pixels, rows: list[list[int]], *, packed: bool) -> dict:
    width = max(sum(len(texts[i]) for i in row) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    number = torch.full((len(rows), width), -1)
    labels = torch.full((len(rows), width), -100)
    slots = torch.full((len(rows), max(sum(len(pixels[i]) for i in r) for r in rows) or 1), -1)
    media, count = [], 0
    for r, row in enumerate(rows):
        at = slot = 0
        for n, i in enumerate(row):
            end = at + len(texts[i])
            input_ids[r, at:end], number[r, at:end] = texts[i], n
            labels[r, at + 1 : end] = texts[i][1:].masked_fill(texts[i][1:] == IMAGE, -100)
            for image in pixels[i]:
                slots[r, slot] = count
                media.append(image)
                slot, count = slot + 1, count + 1
            at = end
    inputs = Media(slots, {"image": MediaInput(torch.stack(media))})
    values = {"media": inputs, "input_ids": input_ids, "attention_mask": number >= 0}
    return values | {"labels": labels, "documents": number if packed else None}


def losses_and_gradients(model, inputs) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(**inputs)
    losses = {"caption": output.loss_sum, "balance": output.load_balance_loss, "z": output.z_loss}
    if output.contrastive_loss is not None:
        losses |= {"language": output.language_loss_sum, "contrastive": output.contrastive_loss}
    sum(losses.values()).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, found


@pytest.mark.parametrize("kind", [k for k in FAMILIES if k != "bloom"])
def test_packed_equals_apart(kind):
    """Every loss to 1e-5 and every gradient to 1e-4 in fp32, experts and their losses included."""
    seed = torch.seed() % 2**31
    model = tiny_flamingo(
        kind,
        seed=seed,
        experts=EXPERTS,
        losses={"language": 0.5, "contrastive": 0.5},
        cross_attention={"feed_forward": "swiglu"},
    )
    texts, pixels = documents(seed)
    apart = batch(texts, pixels, [[i] for i in range(5)], packed=False)
    packed = batch(texts, pixels, [[0, 3, 4], [1, 2]], packed=True)
    one, two = (losses_and_gradients(model, inputs) for inputs in (apart, packed))
    assert two[0] == pytest.approx(one[0], rel=1e-5), f"seed {seed}"
    assert one[1].keys() == two[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(two[1][name], gradient, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("attend", ["latest", "all_previous"])
def test_nothing_of_another_document_is_seen(attend):
    model = tiny_flamingo(cross_attention={"attend": attend})
    texts, pixels = documents(torch.seed() % 2**31)
    rows = [[0, 1, 2]]
    with torch.no_grad():
        inputs = batch(texts, pixels, rows, packed=True)
        before = model(**inputs, with_logits=True).logits
        texts[0] = texts[0].where(texts[0] >= VOCAB, (texts[0] + 7) % VOCAB)
        pixels[0], pixels[1] = torch.randn_like(pixels[0]), torch.randn_like(pixels[1])
        after = model(**batch(texts, pixels, rows, packed=True), with_logits=True).logits
    other = inputs["documents"] == 2
    assert torch.equal(before[other], after[other])
    assert not torch.allclose(before[~other], after[~other])


def test_text_before_the_first_image_of_its_document_sees_none():
    number = torch.tensor([[0, 0, 0, 1, 1, 1, -1]])
    is_media = torch.tensor([[False, True, False, False, False, True, False]])
    for attend in ("latest", "all_previous"):
        visible = media_mask(is_media, torch.tensor([[0, 1]]), attend=attend, documents_BT=number)
        assert visible[0, :, 0].tolist() == [False, True, True, False, False, False, False]
        assert visible[0, :, 1].tolist() == [False] * 5 + [True, False]


def test_positions_begin_anew_with_every_document():
    number = torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1], [0, 1, 1, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 2, 0, 1, 0, 0, 0], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert positions_in_documents(number).tolist() == expected


def test_pairs_of_a_row():
    number = torch.tensor([[0, 0, 1, 1, 1, 2, -1]])
    is_media = torch.tensor([[True, False, False, True, True, False, False]])
    targets = torch.tensor([[-100, 5, -100, -100, -100, 7, -100]])
    pairs = find_pairs(number, is_media, targets, torch.tensor([[0, 1, 2]]))
    assert pairs.row.tolist() == [0, 0, 0] and pairs.last.tolist() == [1, 4, 5]
    assert pairs.slot.tolist()[:2] == [0, 1] and pairs.whole.tolist() == [True, False, False]


def test_a_language_model_that_cannot_keep_documents_apart_is_refused():
    model = tiny_flamingo("bloom")
    texts, pixels = documents(0)
    message = "BloomForCausalLM cannot keep the documents of a row apart; set data.pack_tokens=null"
    with pytest.raises(ValueError, match=message):
        model(**batch(texts, pixels, [[0, 1]], packed=True))
