import pytest
import torch
from torch import nn

from model.resampler import PerceiverResampler, sincos_positions


def naive_resample(module: PerceiverResampler, patches, num_heads):
    """One image at a time, open_flamingo's formulas written out head by head."""

    def norm(layer, x):
        scaled = (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, correction=0, keepdim=True) + layer.eps
        ).sqrt()
        return scaled * layer.weight + layer.bias

    latents = module.latents
    for layer in module.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        normed = norm(attention.norm_latents, latents)
        both = torch.cat([norm(attention.norm_media, patches), normed])
        query = normed @ attention.to_q.weight.T
        key, value = (both @ attention.to_kv.weight.T).chunk(2, dim=1)
        heads = []
        for q, k, v in zip(*(t.chunk(num_heads, dim=1) for t in (query, key, value)), strict=True):
            scores = q @ k.T * q.shape[1] ** -0.5
            scores = (scores - scores.amax(1, keepdim=True)).exp()
            heads.append(scores / scores.sum(1, keepdim=True) @ v)
        latents = latents + torch.cat(heads, dim=1) @ attention.to_out.weight.T
        hidden = norm(layer.feed_forward_norm, latents) @ feed_forward.up_proj.weight.T
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        latents = latents + hidden @ feed_forward.down_proj.weight.T
    return norm(module.norm, latents)


def test_equals_a_naive_float64_reference_image_by_image():
    torch.manual_seed(3)
    module = PerceiverResampler(
        12, depth=2, num_latents=5, num_heads=3, head_dim=4, ff_mult=4
    ).double()
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    features = torch.randn(2, 3, 7, 12).double()
    output = module(features)
    assert output.shape == (2, 5, 12)
    for n in range(2):
        expected = naive_resample(module, features[n].flatten(0, 1), 3)
        # 1e-11: both sides are float64, only the order of sums differs.
        torch.testing.assert_close(output[n], expected, atol=1e-11, rtol=0)


def test_any_number_of_patches_gives_the_same_number_of_latents():
    module = PerceiverResampler(8, depth=1, num_latents=4, num_heads=2, head_dim=4, ff_mult=2)
    assert module(torch.randn(1, 1, 49, 8)).shape == module(torch.randn(1, 1, 5, 8)).shape


def test_patch_positions_tell_patches_apart():
    resampler = PerceiverResampler(
        16, depth=1, num_latents=3, num_heads=2, head_dim=8, ff_mult=2, num_positions=9
    )
    features = torch.randn(1, 1, 9, 16)
    assert not torch.allclose(resampler(features), resampler(features.flip(2)), atol=1e-3)
    with pytest.raises(ValueError, match="4 patches, but positions for 9"):
        resampler(features[:, :, :4])


def test_positions_are_laid_out_as_the_grid_is():
    side, width = 6, 32
    grid = sincos_positions(side * side, width).unflatten(0, (side, side))
    # The first half of the width is the same along a row, the second down a column.
    assert torch.equal(grid[:, :1, :16].expand(-1, side, -1), grid[:, :, :16])
    assert torch.equal(grid[:1, :, 16:].expand(side, -1, -1), grid[:, :, 16:])
    assert len(torch.unique(grid.flatten(0, 1), dim=0)) == side * side
    # One of the directions rises or falls all the way across: it tells one half from the other.
    steps = grid[:, 0, :16].diff(dim=0)
    assert ((steps > 0).all(0) | (steps < 0).all(0)).any()


@pytest.mark.parametrize(("count", "width"), [(12, 32), (16, 30)])
def test_positions_of_no_square_grid_are_refused(count, width):
    with pytest.raises(ValueError, match="want a square grid and a width divisible by 4"):
        sincos_positions(count, width)
