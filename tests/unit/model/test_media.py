import pytest
import torch
from torch import nn

from model.media import Media, MediaEncoder, MediaInput, media_mask, place_latents
from model.resampler import PerceiverResampler, frame_positions
from tests.unit.model.tiny import tiny_vision

SIZES = {"depth": 1, "num_latents": 3, "num_heads": 2, "head_dim": 8, "ff_mult": 2}
TOKENS = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
SLOTS = torch.tensor([[0, 1], [-1, -1], [2, 3]])


def test_a_token_sees_only_the_last_medium_at_or_before_it():
    expected = torch.zeros(3, 5, 2, dtype=torch.bool)
    expected[0, 1:3, 0] = expected[0, 3:, 1] = True
    expected[2, 0, 0] = expected[2, 1:, 1] = True
    assert torch.equal(media_mask(TOKENS, SLOTS), expected)


def test_a_token_sees_every_medium_before_it_when_told_so():
    expected = torch.zeros(3, 5, 2, dtype=torch.bool)
    expected[0, 1:, 0] = expected[0, 3:, 1] = True
    expected[2, 0:, 0] = expected[2, 1:, 1] = True
    assert torch.equal(media_mask(TOKENS, SLOTS, attend="all_previous"), expected)


@pytest.mark.parametrize("attend", ["latest", "all_previous"])
def test_a_row_in_pieces_has_the_mask_of_the_whole_row(attend):
    whole = media_mask(TOKENS, SLOTS, attend=attend)
    first, rest = TOKENS[:, :2], TOKENS[:, 2:]
    pieces = [
        media_mask(first, SLOTS, attend=attend),
        media_mask(rest, SLOTS, attend=attend, seen_B=first.sum(1)),
    ]
    assert torch.equal(torch.cat(pieces, dim=1), whole)


def test_more_media_tokens_than_media_are_refused_by_row_and_number():
    with pytest.raises(ValueError, match="row 1 has 3 media tokens but 1 media; give one medium"):
        media_mask(torch.tensor([[True, False, True], [True] * 3]), torch.tensor([[0, 1], [2, -1]]))


def test_latents_go_to_their_slots():
    latents = torch.randn(4, 3, 5)
    placed = place_latents(latents, SLOTS)
    assert placed.shape == (3, 2, 3, 5)
    assert torch.equal(placed[2, 1], latents[3])


def test_media_are_data_or_features():
    for given in ({}, {"data": torch.zeros(1), "features": torch.zeros(1)}):
        with pytest.raises(ValueError, match="either as data or as features"):
            MediaInput(**given)


def test_features_from_a_cache_give_the_latents_of_the_pixels_bit_for_bit():
    encoder = MediaEncoder(tiny_vision(), PerceiverResampler(24, **SIZES))
    pixels = torch.randn(3, 2, 3, 16, 16)
    cached = encoder.encode(pixels)
    assert cached.shape == (3, 2, 4, 24) and not cached.requires_grad
    assert torch.equal(encoder(MediaInput(features=cached)), encoder(MediaInput(pixels)))


def test_without_media_every_parameter_is_used_all_the_same():
    encoder = MediaEncoder(tiny_vision(), PerceiverResampler(24, **SIZES, max_frames=2))
    encoder(None).sum().backward()
    trained = [p for p in encoder.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)


def test_padded_frames_are_never_seen():
    encoder = MediaEncoder(tiny_vision(), PerceiverResampler(24, **SIZES, max_frames=4))
    pixels = torch.randn(2, 4, 3, 16, 16)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    before = encoder(MediaInput(pixels, frame_mask=mask))
    changed = pixels.clone()
    changed[0, 2:] = 1e4
    after = encoder(MediaInput(changed, frame_mask=mask))
    assert torch.equal(before, after)
    short = encoder(MediaInput(pixels[:1, :2]))
    torch.testing.assert_close(before[:1], short, atol=1e-5, rtol=0)


def test_a_medium_whose_frames_are_all_padding_is_finite():
    encoder = MediaEncoder(tiny_vision(), PerceiverResampler(24, **SIZES))
    mask = torch.zeros(1, 2, dtype=torch.bool)
    latents = encoder(MediaInput(torch.randn(1, 2, 3, 16, 16), frame_mask=mask))
    assert latents.isfinite().all()


def test_the_order_of_frames_matters_only_with_temporal_embeddings():
    pixels = torch.randn(1, 3, 3, 16, 16)
    for max_frames, same in ((None, True), (3, False)):
        resampler = PerceiverResampler(24, **SIZES, max_frames=max_frames)
        if max_frames:
            nn.init.normal_(resampler.frames)
        encoder = MediaEncoder(tiny_vision(), resampler)
        forward, backward = encoder(MediaInput(pixels)), encoder(MediaInput(pixels.flip(1)))
        assert torch.allclose(forward, backward, atol=1e-5) == same


def test_more_frames_than_in_training_get_interpolated_vectors():
    frames = torch.randn(3, 8)
    assert torch.equal(frame_positions(frames, 2), frames[:2])
    longer = frame_positions(frames, 5)
    expected = [frames[0], (frames[0] + frames[1]) / 2, frames[1], (frames[1] + frames[2]) / 2]
    torch.testing.assert_close(longer, torch.stack([*expected, frames[2]]))


def test_media_move_to_a_dtype_and_masks_stay_bool():
    media = Media(
        SLOTS, {"image": MediaInput(torch.zeros(1, 1, 2), frame_mask=torch.ones(1, 1).bool())}
    )
    moved = media.to(torch.device("cpu"), torch.bfloat16)
    assert moved.inputs["image"].data.dtype == torch.bfloat16
    assert moved.inputs["image"].frame_mask.dtype == torch.bool
    assert moved.slots.dtype == torch.long
