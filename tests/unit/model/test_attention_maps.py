"""Attention maps against the weights computed by hand in float64, and what must not matter."""

import math

import pytest
import torch
from torch import nn

from model.attention_maps import AttentionMaps, attention_maps
from model.media import Media, MediaInput
from model.vision_encoder import VisionEncoder
from tests.unit.model import tiny
from tests.unit.model.tiny import IMAGE, VOCAB, tiny_batch, tiny_flamingo


def maps_of(model, batch):
    return attention_maps(model, batch["media"], batch["input_ids"], batch["attention_mask"])


def opened(**settings):
    model = tiny_flamingo(resampler={"depth": 2}, **settings)
    for number, block in enumerate(model.gated_blocks):
        block.attn_gate.data.fill_(0.4 * (number + 1))
        block.ff_gate.data.fill_(0.3)
    return model


def by_hand(module, query_input, key_input, num_heads, mask=None):
    """Mean over heads of softmax(q k / sqrt(d)), head by head."""
    query = query_input @ module.to_q.weight.T
    key = key_input @ module.to_kv.weight.T[:, : module.to_q.weight.shape[0]]
    dim, found = query.shape[-1] // num_heads, 0.0
    for head in range(num_heads):
        part = slice(head * dim, (head + 1) * dim)
        scores = query[..., part] @ key[..., part].transpose(-1, -2) / math.sqrt(dim)
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e300)
        found = found + scores.softmax(-1)
    return found / num_heads


def test_maps_are_the_product_of_both_attentions_by_hand():
    model, batch = opened().double(), tiny_batch()
    media = Media(
        batch["media"].slots,
        {"image": MediaInput(batch["media"].inputs["image"].data.double())},
    )
    batch = batch | {"media": media}
    (encoder,) = model.media_encoders.values()
    inputs = []
    for block in model.gated_blocks:
        block.attention.register_forward_pre_hook(lambda m, a: inputs.append((m, a)))
    seen = []
    for layer in encoder.resampler.layers:
        layer.attention.register_forward_pre_hook(lambda m, a: seen.append((m, a)))
    found = maps_of(model, batch)
    rollout = 0.0
    assert len(seen) == 2
    for module, (features, latents, *_) in seen:
        normed = module.norm_latents(latents)
        keys = torch.cat([module.norm_media(features), normed], dim=1)
        weights = by_hand(module, normed, keys, module.num_heads)
        count = features.shape[1]
        before = torch.zeros_like(weights[..., :count]) + rollout
        rollout = (before + weights[..., :count] + weights[..., count:] @ before) / 2
    rollout = rollout / rollout.sum(-1, keepdim=True)
    gates = torch.tensor([math.tanh(0.4 * (n + 1)) for n in range(len(inputs))]).double()
    blocks = []
    latents = model.encode_media(media).flatten(1, 2)
    for module, (text, _, visible) in inputs:
        per = latents.shape[1] // visible.shape[2]
        mask = visible.repeat_interleave(per, dim=-1)
        weights = by_hand(module, module.norm(text), latents, module.num_heads, mask)
        weights = weights * mask.any(-1, keepdim=True)
        own = rollout[media.slots.clamp(min=0)]
        words = weights.unflatten(-1, (visible.shape[2], per))
        blocks.append(torch.einsum("btml,bmlp->btmp", words, own))
    expected = torch.stack(blocks).unflatten(-1, (1, 2, 2))
    torch.testing.assert_close(found.blocks.double(), expected, rtol=1e-6, atol=1e-8)
    assert len(blocks) > 1 and not torch.equal(found.blocks[0], found.blocks[1])
    mean = sum(g * b for g, b in zip(gates / gates.sum(), expected, strict=True))
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-5, atol=1e-7)


def test_a_token_that_sees_an_image_looks_at_all_of_it_together():
    model, batch = opened(), tiny_batch()
    found = maps_of(model, batch)
    after = model.token_ids.is_media(batch["input_ids"]).cumsum(1) > 0
    for maps in (found.mean, *found.blocks):
        sums = maps.sum((2, 3, 4, 5))
        torch.testing.assert_close(sums[after], torch.ones_like(sums[after]))
        assert (sums[~after] == 0).all() and (maps >= 0).all()


def test_an_earlier_image_of_the_row_matters_only_where_all_are_attended_to():
    """Row 1 has images at 1 and 5: the maps over each, and what they change in the other's."""
    batch = tiny_batch()
    pixels = batch["media"].inputs["image"].data.clone()
    pixels[1] = torch.randn_like(pixels[1])
    changed = batch | {"media": Media(batch["media"].slots, {"image": MediaInput(pixels)})}
    latest = opened()
    first, second = maps_of(latest, batch).mean[1], maps_of(latest, changed).mean[1]
    assert (first[1:5, 1] == 0).all() and (first[5:, 0] == 0).all()
    # Behind the second image its map changes only by what the text took over from the first.
    assert not torch.equal(first[1:5, 0], second[1:5, 0])
    every = opened(cross_attention={"attend": "all_previous"})
    both = maps_of(every, batch).mean[1]
    assert (both[1:5, 1] == 0).all() and (both[5:].sum((2, 3, 4)) > 0).all()


def test_the_first_blocks_map_is_that_of_the_visible_image_alone():
    """No text has passed a gated block before it: another image of the row cannot matter at all."""
    model, batch = opened(), tiny_batch()
    pixels = batch["media"].inputs["image"].data.clone()
    pixels[1] = torch.randn_like(pixels[1])
    changed = batch | {"media": Media(batch["media"].slots, {"image": MediaInput(pixels)})}
    first, second = maps_of(model, batch).blocks[0, 1], maps_of(model, changed).blocks[0, 1]
    torch.testing.assert_close(first[5:], second[5:])
    assert not torch.equal(first[1:5], second[1:5])


def test_another_rows_image_must_not_matter():
    model, batch = opened(), tiny_batch()
    pixels = batch["media"].inputs["image"].data
    last = int(batch["media"].slots[0].max())
    other = pixels.clone()
    other[last + 1 :] = torch.rand_like(other[last + 1 :])
    changed = batch | {"media": Media(batch["media"].slots, {"image": MediaInput(other)})}
    first, second = maps_of(model, batch).mean, maps_of(model, changed).mean
    torch.testing.assert_close(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_padding_on_either_side_must_not_matter():
    model, batch = opened(), tiny_batch()
    right = maps_of(model, batch).mean[0, :7]
    ids, mask = (batch[name][0, :7] for name in ("input_ids", "attention_mask"))
    pad = torch.full((2,), 3)
    left = attention_maps(
        model,
        Media(batch["media"].slots[:1], batch["media"].inputs),
        torch.cat([pad, ids]).unsqueeze(0),
        torch.cat([pad < 0, mask]).unsqueeze(0),
    )
    torch.testing.assert_close(left.mean[0, 2:], right, rtol=1e-4, atol=1e-6)


class Registers(nn.Module):
    """A class token and a register in front of the patches."""

    def __init__(self, patches):
        super().__init__()
        self.patches = patches

    def forward(self, images):
        features = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([9 * torch.ones_like(features[:, :2]), features], dim=1)


@pytest.mark.parametrize("prefix", [False, True], ids=["convnet", "tokens behind registers"])
@pytest.mark.parametrize(("frame", "row", "column"), [(0, 1, 3), (1, 2, 0)])
def test_a_place_in_the_image_is_that_place_in_the_map(monkeypatch, prefix, frame, row, column):
    """All patches are alike but one: it is the one whose share stands out, in its frame alone."""
    backbone = nn.Conv2d(3, 24, 4, stride=4)
    if prefix:
        backbone = Registers(backbone)
    half = (0.5, 0.5, 0.5)
    tower = VisionEncoder(
        backbone, image_size=16, mean=half, std=half, patch_size=4 if prefix else None
    )
    monkeypatch.setattr(tiny, "tiny_vision", lambda: tower)
    model = opened()
    pixels = torch.zeros(1, 3, 3, 16, 16)
    pixels[0, frame, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 3.0
    shown = MediaInput(pixels, frame_mask=torch.tensor([[True, True, False]]))
    ids = torch.tensor([[1, IMAGE, 5, VOCAB - 1]])
    found = attention_maps(
        model, Media(torch.tensor([[0]]), {"image": shown}), ids, torch.ones_like(ids).bool()
    ).mean[0, -1, 0]
    assert found.shape == (3, 4, 4)
    assert (found[2] == 0).all(), "a padded frame is not looked at"
    assert abs(float(found.sum()) - 1) < 1e-5
    apart = (found[:2] - found[:2].median()).abs()
    assert [int(i) for i in torch.unravel_index(apart.argmax(), apart.shape)] == [
        frame,
        row,
        column,
    ]
    assert float(apart.flatten().sort().values[-2]) < 1e-5


@pytest.mark.parametrize("losses", [{"language": 0.5}, {"contrastive": 0.5}], ids=str)
def test_models_with_other_losses_are_watched_in_one_pass(losses):
    found = maps_of(opened(losses=losses), tiny_batch())
    torch.testing.assert_close(found.blocks, maps_of(opened(), tiny_batch()).blocks)


def test_shut_gates_count_evenly():
    maps = torch.rand(2, 1, 1, 1, 1, 2, 2)
    torch.testing.assert_close(AttentionMaps(maps, torch.zeros(2)).mean, maps.mean(0))
    torch.testing.assert_close(AttentionMaps(maps, torch.tensor([0.0, 0.3])).mean, maps[1])


def test_nothing_is_watched_afterwards_and_training_goes_on():
    model, batch = opened().train(), tiny_batch()
    before = sum(len(m._forward_pre_hooks) for m in model.modules())
    modes = [m.training for m in model.modules()]
    maps_of(model, batch)
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == before
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(IndexError):  # and not after a failure either
        maps_of(model, batch | {"input_ids": batch["input_ids"] + 10**6})
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == before
    assert [m.training for m in model.modules()] == modes


def test_what_cannot_be_drawn_is_named(monkeypatch):
    model, batch = opened(), tiny_batch()
    model.vision.num_patches = 12
    with pytest.raises(ValueError, match="12 patches are no square grid"):
        maps_of(model, batch)
    model.media_encoders["sound"] = model.media_encoders["image"]
    with pytest.raises(ValueError, match="models with one kind of media"):
        maps_of(model, batch)
