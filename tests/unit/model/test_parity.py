"""Our blocks against transformers' IDEFICS, and open_flamingo's formulas in float64."""

import pytest
import torch
from torch import nn
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import (
    IdeficsGatedCrossAttentionLayer,
    IdeficsModel,
)
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from model.cross_attention import GatedCrossAttentionBlock, MaskedCrossAttention
from model.feed_forward import DenseFeedForward
from model.language import fused_layers
from model.media import media_mask
from model.resampler import PerceiverResampler

WIDTH, MEDIA, HEADS = 24, 16, 4
ROWS, TOKENS, SLOTS, LATENTS = 2, 7, 3, 5


def idefics_config(**settings):
    return IdeficsConfig(
        hidden_size=WIDTH,
        intermediate_size=40,
        num_attention_heads=HEADS,
        vision_config={"embed_dim": MEDIA} | settings.pop("vision", {}),
        perceiver_config={"qk_layer_norms_perceiver": settings.pop("qk_perceiver", False)},
        alpha_initializer="ones",
        **settings,
    )


def shake(module):
    """Give every parameter a value of its own: norms start at 1 and would hide a swap."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def assert_same(ours, theirs, pairs, inputs, reference_inputs):
    """Outputs to 1e-5; gradients of a random projection by inputs and parameters to 1e-4."""
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(ours)
    tensors = [p for p, _ in pairs]
    found = torch.autograd.grad((ours * weight).sum(), [*inputs, *tensors])
    own = [p for _, p in pairs]
    flat = [q for p in own for q in (p if isinstance(p, list) else [p])]
    expected = list(torch.autograd.grad((theirs * weight).sum(), [*reference_inputs, *flat]))
    for gradient in found[: len(inputs)]:
        torch.testing.assert_close(gradient, expected.pop(0), atol=1e-4, rtol=1e-4)
    for gradient, parameter in zip(found[len(inputs) :], own, strict=True):
        parts = [expected.pop(0) for _ in (parameter if isinstance(parameter, list) else [0])]
        joined = torch.cat(parts).view_as(gradient)
        torch.testing.assert_close(gradient, joined, atol=1e-4, rtol=1e-4)


def copy_over(pairs):
    with torch.no_grad():
        for ours, theirs in pairs:
            parts = theirs if isinstance(theirs, list) else [theirs]
            ours.copy_(torch.cat(parts).view_as(ours))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_resampler_equals_that_of_idefics(qk_norm, seed):
    torch.manual_seed(seed)
    config = idefics_config(qk_perceiver=qk_norm)
    theirs = IdeficsPerceiverResampler(config, MEDIA, 2, 3, 8, LATENTS)
    shake(theirs)
    ours = PerceiverResampler(
        MEDIA, depth=2, num_latents=LATENTS, num_heads=3, head_dim=8, ff_mult=4,
        feed_forward="relu", qk_norm=qk_norm,
    )  # fmt: skip
    pairs = [(ours.latents, theirs.latents)]
    pairs += [
        (ours.norm.weight, theirs.layer_norm.weight),
        (ours.norm.bias, theirs.layer_norm.bias),
    ]
    for layer, (attention, mlp) in zip(ours.layers, theirs.blocks, strict=True):
        mine = layer.attention
        norms = [
            (mine.norm_media, attention.context_layer_norm),
            (mine.norm_latents, attention.latents_layer_norm),
            (layer.feed_forward_norm, mlp.ln),
        ]
        if qk_norm:
            norms += [(mine.q_norm, attention.q_layer_norm), (mine.k_norm, attention.k_layer_norm)]
        pairs += [(a.weight, b.weight) for a, b in norms] + [(a.bias, b.bias) for a, b in norms]
        pairs += [
            (mine.to_q.weight, attention.q_proj.weight),
            (mine.to_kv.weight, [attention.k_proj.weight, attention.v_proj.weight]),
            (mine.to_out.weight, attention.output_proj.weight),
            (layer.feed_forward.up_proj.weight, mlp.fc.weight),
            (layer.feed_forward.down_proj.weight, mlp.c_proj.weight),
        ]
    assert {id(p) for p, _ in pairs} == {id(p) for p in ours.parameters()}
    copy_over(pairs)
    features = torch.randn(3, 9, MEDIA, requires_grad=True)
    copied = features.detach().clone().requires_grad_()
    assert_same(ours(features.unsqueeze(1)), theirs(copied), pairs, [features], [copied])


@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gated_block_equals_that_of_idefics(gate, qk_norm, seed):
    torch.manual_seed(seed)
    alpha = {"scalar": "float", "vector": "vector"}[gate]
    config = idefics_config(qk_layer_norms=qk_norm, alpha_type=alpha)
    theirs = IdeficsGatedCrossAttentionLayer(config, layer_idx=0).eval()
    shake(theirs)
    attention = MaskedCrossAttention(
        WIDTH, MEDIA, num_heads=HEADS, head_dim=WIDTH // HEADS, norm="rms_norm", qk_norm=qk_norm
    )
    ours = GatedCrossAttentionBlock(
        attention, DenseFeedForward(WIDTH, 40), text_width=WIDTH, norm="rms_norm", gate=gate
    )
    cross, mlp = theirs.cross_attn, theirs.mlp
    pairs = [
        (attention.norm.weight, theirs.input_layernorm.weight),
        (attention.to_q.weight, cross.q_proj.weight),
        (attention.to_kv.weight, [cross.k_proj.weight, cross.v_proj.weight]),
        (attention.to_out.weight, cross.o_proj.weight),
        (ours.attn_gate, theirs.alpha_cross_attn),
        (ours.ff_gate, theirs.alpha_dense),
        (ours.feed_forward_norm.weight, theirs.post_attention_layernorm.weight),
        (ours.feed_forward.gate_up_proj.weight, [mlp.gate_proj.weight, mlp.up_proj.weight]),
        (ours.feed_forward.down_proj.weight, mlp.down_proj.weight),
    ]
    if qk_norm:
        pairs += [
            (attention.q_norm.weight, cross.q_layer_norm.weight),
            (attention.k_norm.weight, cross.k_layer_norm.weight),
        ]
    assert {id(p) for p, _ in pairs} == {id(p) for p in ours.parameters()}
    copy_over(pairs)
    text = torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True)
    media = torch.randn(ROWS, SLOTS, LATENTS, MEDIA, requires_grad=True)
    text_copy, media_copy = (t.detach().clone().requires_grad_() for t in (text, media))
    visible = torch.rand(ROWS, TOKENS, SLOTS) < 0.4
    visible[0, :2] = False
    mask = torch.zeros(ROWS, 1, TOKENS, SLOTS * LATENTS)
    mask.masked_fill_(~visible.repeat_interleave(LATENTS, 2).unsqueeze(1), torch.finfo().min)
    expected = theirs(
        text_copy,
        image_hidden_states=media_copy.flatten(1, 2),
        image_attention_mask=mask,
        cross_attention_gate=visible.any(2).float(),
    )
    found = ours(text, media, visible)
    assert_same(found, expected, pairs, [text, media], [text_copy, media_copy])


@pytest.mark.parametrize("every", [1, 2, 3])
def test_blocks_stand_where_a_forward_of_idefics_runs_them(every):
    config = idefics_config(
        num_hidden_layers=6, vocab_size=20, additional_vocab_size=0, pad_token_id=0,
        cross_layer_interval=every, use_resampler=False,
        vision={"image_size": 16, "patch_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "intermediate_size": 16},
    )  # fmt: skip
    model = IdeficsModel(config).eval()
    order = []
    for layer in model.layers:
        layer.register_forward_hook(lambda *_: order.append("layer"))
    for block in model.gated_cross_attn_layers:
        block.register_forward_hook(lambda *_: order.append("block"))
    model(
        input_ids=torch.tensor([[1, 5, 6]]),
        image_encoder_embeddings=torch.randn(1, 1, LATENTS, MEDIA),
        image_attention_mask=torch.ones(1, 3, 1),
        use_cache=False,
    )
    stands = [order[:i].count("layer") for i, name in enumerate(order) if name == "block"]
    assert fused_layers(6, first_layer=0, every=every) == stands


def test_blocks_stand_where_idefics_and_open_flamingo_put_them():
    for layers in (24, 32, 33):
        for every in (1, 2, 4, 7):
            idefics = [i for i in range(layers) if i % every == 0]
            open_flamingo = [i for i in range(layers) if (i + 1) % every == 0]
            assert fused_layers(layers, first_layer=0, every=every) == idefics
            assert fused_layers(layers, first_layer=every - 1, every=every) == open_flamingo


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    )


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def attend(query, key, value, heads, mask=None):
    """open_flamingo's: scaled queries, the row's largest logit subtracted, softmax."""
    query, key, value = (t.unflatten(-1, (heads, -1)) for t in (query, key, value))
    scores = torch.einsum("bihd,bjhd->bhij", query * query.shape[-1] ** -0.5, key)
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), -torch.finfo(scores.dtype).max)
    scores = scores - scores.amax(-1, keepdim=True).detach()
    return scores.softmax(-1), lambda weights: torch.einsum(
        "bhij,bjhd->bihd", weights, value
    ).flatten(2)


def assert_same_gradients(found, expected, tensors):
    """In float64, of a random projection."""
    weight = torch.randn_like(found)
    one, two = (
        torch.autograd.grad((t * weight).sum(), tensors, retain_graph=True)
        for t in (found, expected)
    )
    for ours, reference in zip(one, two, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("frames", [1, 3])
def test_the_resampler_equals_open_flamingos_formulas(frames):
    torch.manual_seed(frames)
    ours = PerceiverResampler(
        MEDIA, depth=2, num_latents=LATENTS, num_heads=3, head_dim=8, ff_mult=4, max_frames=3
    ).double()
    shake(ours)
    features = torch.randn(2, frames, 4, MEDIA, dtype=torch.float64, requires_grad=True)
    x = (features + ours.frames[:frames, None]).flatten(1, 2)
    latents = ours.latents.repeat(2, 1, 1)
    for layer in ours.layers:
        mine = layer.attention
        normed = layer_norm(latents, mine.norm_latents)
        both = torch.cat([layer_norm(x, mine.norm_media), normed], 1)
        key, value = (both @ mine.to_kv.weight.T).chunk(2, -1)
        weights, mix = attend(normed @ mine.to_q.weight.T, key, value, 3)
        latents = mix(weights) @ mine.to_out.weight.T + latents
        hidden = layer_norm(latents, layer.feed_forward_norm) @ layer.feed_forward.up_proj.weight.T
        latents = gelu(hidden) @ layer.feed_forward.down_proj.weight.T + latents
    expected = layer_norm(latents, ours.norm)
    found = ours(features)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert_same_gradients(found, expected, [features, *ours.parameters()])


@pytest.mark.parametrize("rule", ["latest", "all_previous"])
def test_the_gated_block_equals_open_flamingos_formulas(rule):
    torch.manual_seed(7)
    attention = MaskedCrossAttention(WIDTH, MEDIA, num_heads=HEADS, head_dim=8)
    feed_forward = DenseFeedForward(WIDTH, 4 * WIDTH, form="gelu")
    ours = GatedCrossAttentionBlock(
        attention, feed_forward, text_width=WIDTH, gate_init=0.4
    ).double()
    shake(ours)
    is_media = torch.tensor([[0, 1, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 1, 0]]).bool()
    slots = torch.tensor([[0, 1, -1], [2, 3, 4]])
    text = torch.randn(ROWS, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    media = torch.randn(ROWS, SLOTS, LATENTS, MEDIA, dtype=torch.float64, requires_grad=True)
    text_time = is_media.cumsum(1)
    media_time = torch.arange(1, SLOTS + 1).repeat_interleave(LATENTS)
    compare = torch.eq if rule == "latest" else torch.ge
    mask = compare(text_time.unsqueeze(-1), media_time)
    query = layer_norm(text, attention.norm) @ attention.to_q.weight.T
    key, value = (media.flatten(1, 2) @ attention.to_kv.weight.T).chunk(2, -1)
    weights, mix = attend(query, key, value, HEADS, mask)
    # open_flamingo does this in the first mode alone; in the other, text before the first image
    # would attend to all images evenly. We show it nothing in both.
    weights = weights.masked_fill((text_time == 0)[:, None, :, None], 0.0)
    hidden = mix(weights) @ attention.to_out.weight.T * ours.attn_gate.tanh() + text
    update = gelu(layer_norm(hidden, ours.feed_forward_norm) @ feed_forward.up_proj.weight.T)
    expected = update @ feed_forward.down_proj.weight.T * ours.ff_gate.tanh() + hidden
    found = ours(text, media, media_mask(is_media, slots, attend=rule))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert_same_gradients(found, expected, [text, media, *ours.parameters()])


def test_open_flamingo_shows_strangers_where_we_show_nothing_or_raise():
    torch.manual_seed(8)
    attention = MaskedCrossAttention(WIDTH, MEDIA, num_heads=HEADS, head_dim=8).double()
    text = torch.randn(1, 4, WIDTH, dtype=torch.float64)
    media = torch.randn(1, 2, LATENTS, MEDIA, dtype=torch.float64)
    query = layer_norm(text, attention.norm) @ attention.to_q.weight.T
    key, value = (media.flatten(1, 2) @ attention.to_kv.weight.T).chunk(2, -1)
    mean = value.mean(1) @ attention.to_out.weight.T
    slots = torch.tensor([[0, 1]])

    def theirs(is_media, compare):
        text_time = is_media.cumsum(1)
        mask = compare(text_time.unsqueeze(-1), torch.arange(1, 3).repeat_interleave(LATENTS))
        weights, mix = attend(query, key, value, HEADS, mask)
        if compare is torch.eq:
            weights = weights.masked_fill((text_time == 0)[:, None, :, None], 0.0)
        return mix(weights) @ attention.to_out.weight.T

    # Text before the first image, where all_previous ("ge") gives it the mean of all images.
    late = torch.tensor([[False, False, True, True]])
    torch.testing.assert_close(theirs(late, torch.ge)[0, :2], mean.expand(2, -1))
    ours = attention(
        text, attention.keys_values(media), media_mask(late, slots, attend="all_previous")
    )
    assert not ours[0, :2].any()
    torch.testing.assert_close(ours[0, 2:], theirs(late, torch.ge)[0, 2:], atol=1e-10, rtol=0)
    # A third image token without an image, where the default ("eq") gives the mean as well.
    many = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(theirs(many, torch.eq)[0, 2:], mean.expand(2, -1))
    for rule in ("latest", "all_previous"):
        with pytest.raises(ValueError, match="row 0 has 3 media tokens but 2 media"):
            media_mask(many, slots, attend=rule)


def test_squared_relu_is_flamingos_feed_forward():
    module = DenseFeedForward(6, 9, form="squared_relu")
    x = torch.randn(4, 6)
    expected = (x @ module.up_proj.weight.T).clamp(min=0) ** 2 @ module.down_proj.weight.T
    torch.testing.assert_close(module(x), expected)
    assert isinstance(module.act_fn, nn.Module)
