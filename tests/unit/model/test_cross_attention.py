import pytest
import torch
from torch import nn

from model.cross_attention import GatedCrossAttentionBlock, MaskedCrossAttention
from model.feed_forward import DenseFeedForward


def naive_cross_attention(module: MaskedCrossAttention, text, media, visible):
    """Loops over rows, tokens and heads; softmax over the latents of the visible images."""
    inner = module.to_q.out_features
    head_dim = inner // module.num_heads
    output = torch.zeros_like(text)
    for b in range(text.shape[0]):
        for t in range(text.shape[1]):
            shown = [m for m in range(media.shape[1]) if visible[b, t, m]]
            if not shown:
                continue
            row = text[b, t]
            row = (row - row.mean()) / (row.var(correction=0) + module.norm.eps).sqrt()
            query = module.to_q.weight @ (row * module.norm.weight + module.norm.bias)
            latents = torch.cat([media[b, m] for m in shown])
            keys, values = (latents @ module.to_kv.weight.T).split(inner, dim=1)
            heads = []
            for h in range(module.num_heads):
                part = slice(h * head_dim, (h + 1) * head_dim)
                scores = keys[:, part] @ query[part] * head_dim**-0.5
                heads.append(scores.softmax(0) @ values[:, part])
            output[b, t] = module.to_out.weight @ torch.cat(heads)
    return output


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cross_attention_equals_a_naive_float64_loop(seed):
    torch.manual_seed(seed)
    module = MaskedCrossAttention(12, 10, num_heads=3, head_dim=4).double()
    nn.init.normal_(module.norm.weight)
    text, media = torch.randn(2, 6, 12).double(), torch.randn(2, 3, 5, 10).double()
    visible = torch.rand(2, 6, 3) < 0.4
    expected = naive_cross_attention(module, text, media, visible)
    # 1e-12: both sides are float64, only the order of sums differs.
    found = module(text, module.keys_values(media), visible)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_rows_that_see_nothing_are_exactly_zero_and_gradients_are_finite():
    module = MaskedCrossAttention(8, 8, num_heads=2, head_dim=4)
    text = torch.randn(2, 4, 8, requires_grad=True)
    visible = torch.zeros(2, 4, 2, dtype=torch.bool)
    visible[0, 2:, 0] = True
    output = module(text, module.keys_values(torch.randn(2, 2, 3, 8)), visible)
    output.square().sum().backward()
    assert torch.equal(output[0, :2], torch.zeros(2, 8))
    assert torch.equal(output[1], torch.zeros(4, 8))
    assert output[0, 2:].abs().min() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert text.grad.isfinite().all()


def test_closed_gates_pass_the_text_through_bit_for_bit():
    attention = MaskedCrossAttention(8, 6, num_heads=2, head_dim=4)
    block = GatedCrossAttentionBlock(attention, DenseFeedForward(8, 16), text_width=8)
    text = torch.randn(2, 4, 8)
    visible = torch.ones(2, 4, 1, dtype=torch.bool)
    assert torch.equal(block(text, torch.randn(2, 1, 3, 6), visible), text)
    assert block.attn_gate.shape == block.ff_gate.shape == (1,)


def test_open_gates_let_the_block_through():
    attention = MaskedCrossAttention(8, 6, num_heads=2, head_dim=4)
    feed_forward = DenseFeedForward(8, 16)
    block = GatedCrossAttentionBlock(attention, feed_forward, text_width=8, gate_init=1.0)
    text, media = torch.randn(2, 4, 8), torch.randn(2, 1, 3, 6)
    visible = torch.ones(2, 4, 1, dtype=torch.bool)
    gate = torch.tanh(torch.tensor(1.0))
    attended = text + gate * attention(text, attention.keys_values(media), visible)
    expected = attended + gate * feed_forward(block.feed_forward_norm(attended))
    torch.testing.assert_close(block(text, media, visible), expected)


def test_fresh_queries_and_keys_give_logits_of_variance_one():
    torch.manual_seed(0)
    attention = MaskedCrossAttention(256, 256, num_heads=4, head_dim=64)
    normalised = torch.nn.functional.layer_norm(torch.randn(512, 256), (256,))
    query = attention.to_q(normalised).unflatten(-1, (4, 64))
    key = attention.to_kv(normalised.flip(0))[:, :256].unflatten(-1, (4, 64))
    logits = torch.einsum("qnk,pnk->nqp", query, key) / 64**0.5
    assert logits.var().item() == pytest.approx(1.0, rel=0.1)


def test_a_vector_gate_opens_channel_by_channel():
    attention = MaskedCrossAttention(8, 6, num_heads=2, head_dim=4)
    block = GatedCrossAttentionBlock(
        attention, DenseFeedForward(8, 16), text_width=8, gate="vector"
    )
    text, media = torch.randn(2, 4, 8), torch.randn(2, 1, 3, 6)
    with torch.no_grad():
        block.attn_gate[3] = 1.0
        differs = block(text, media, torch.ones(2, 4, 1, dtype=torch.bool)) != text
    assert differs[..., 3].all() and not differs[..., :3].any() and not differs[..., 4:].any()
