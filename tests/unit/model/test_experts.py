import pytest
import torch
from torch.nn import functional

from model.config import ExpertsConfig
from model.experts import (
    DenseFeedForward,
    ExpertFeedForward,
    NativeExperts,
    StackedExperts,
    router_losses,
)


def naive_experts(module: ExpertFeedForward, tokens):
    """One token and one expert at a time, float64."""
    gate = module.gate.weight.double()
    up_weights, down_weights = (
        w.double() for w in (module.experts.gate_up_proj, module.experts.down_proj)
    )
    output = torch.zeros_like(tokens)
    for i, token in enumerate(tokens):
        probabilities = (gate @ token).softmax(0)
        chosen = probabilities.argsort(descending=True)[: module.top_k]
        weights = probabilities[chosen]
        if module.top_k > 1:
            weights = weights / weights.sum()
        for weight, expert in zip(weights, chosen, strict=True):
            a, b = (up_weights[expert] @ token).chunk(2)
            output[i] += weight * (down_weights[expert] @ (functional.silu(a) * b))
    return output


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize(
    ("dtype", "width", "tolerance"),
    # float32 of 16 takes grouped_mm, of 6 the loop, since its rows are no multiple of 16 bytes.
    [(torch.float32, 16, 2e-6), (torch.float32, 6, 2e-6), (torch.float64, 16, 1e-13)],
)
def test_dispatch_equals_a_naive_float64_loop(top_k, dtype, width, tolerance):
    torch.manual_seed(top_k)
    module = ExpertFeedForward(width, 8, num_experts=5, top_k=top_k).to(dtype)
    hidden = torch.randn(3, 7, width, dtype=dtype)
    expected = naive_experts(module, hidden.flatten(0, 1).double()).view(3, 7, width)
    torch.testing.assert_close(module(hidden).double(), expected, atol=tolerance, rtol=0)


def test_grouped_and_looped_experts_give_the_same_gradients(monkeypatch):
    torch.manual_seed(0)
    module = ExpertFeedForward(16, 8, num_experts=4, top_k=2)
    hidden = torch.randn(2, 9, 16)
    gradients = []
    for grouped in (True, False):
        monkeypatch.setattr("model.experts._grouped_mm_takes", lambda *_, g=grouped: g)
        module.zero_grad()
        module(hidden).square().sum().backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("width", [6, 16])
def test_one_expert_equals_the_dense_block(width):
    torch.manual_seed(0)
    dense = DenseFeedForward(width, 8)
    experts = ExpertFeedForward(width, 8, num_experts=1, top_k=1)
    experts.experts.gate_up_proj.data[0] = dense.gate_up_proj.weight.data
    experts.experts.down_proj.data[0] = dense.down_proj.weight.data
    hidden = torch.randn(2, 5, width)
    torch.testing.assert_close(experts(hidden), dense(hidden), atol=1e-6, rtol=0)


@pytest.mark.parametrize("width", [6, 16])
def test_an_expert_without_tokens_gets_a_zero_gradient(width):
    module = ExpertFeedForward(width, 8, num_experts=4, top_k=1)
    torch.nn.init.zeros_(module.gate.weight)
    module.gate.weight.data[2] = 1.0
    module(torch.rand(1, 5, width)).sum().backward()
    for parameter in (module.experts.gate_up_proj, module.experts.down_proj):
        used = parameter.grad.abs().sum((1, 2)) > 0
        assert used.tolist() == [False, False, True, False]


def test_stacked_experts_start_different():
    weight = StackedExperts(8, 8, 3).gate_up_proj
    assert not torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[1], weight[2])


def test_the_router_is_fp32_in_a_bf16_module():
    module = ExpertFeedForward(16, 8, num_experts=4, top_k=2).bfloat16()
    hidden = torch.randn(1, 5, 16).bfloat16()
    assert module.gate(hidden).dtype == torch.float32
    assert module(hidden).dtype == torch.bfloat16


@pytest.mark.parametrize("top_k", [1, 2])
def test_top_k_weights_equal_those_of_deepspeed_autoep(top_k):
    router_module = pytest.importorskip("deepspeed.moe.ep_router")
    torch.manual_seed(0)
    ours = ExpertFeedForward(16, 8, num_experts=6, top_k=top_k)
    theirs = router_module.TokenChoiceTopKRouter(
        dim=16,
        num_experts=6,
        num_expert_groups=None,
        num_limited_groups=None,
        top_k=top_k,
        score_func="softmax",
        route_norm=top_k > 1,
        route_scale=1.0,
        gate_bias=False,
    )
    theirs.gate.weight.data = ours.gate.weight.data
    tokens = torch.randn(11, 16)
    weights, chosen, _ = theirs(tokens)
    expected = torch.zeros(11, 16)
    for token in range(11):
        for weight, expert in zip(weights[token], chosen[token], strict=True):
            counts = functional.one_hot(expert, 6)
            expected[token] += weight * ours.experts(tokens[token : token + 1], counts)[0]
    torch.testing.assert_close(ours(tokens.unsqueeze(0))[0], expected, atol=1e-6, rtol=0)


def test_native_experts_start_different_and_give_router_logits():
    pytest.importorskip("deepspeed")
    module = NativeExperts(16, 8, num_experts=4, top_k=2)
    first, second = module.moe.deepspeed_moe.experts.deepspeed_experts[:2]
    assert not torch.equal(first.gate_up_proj.weight, second.gate_up_proj.weight)
    seen = []
    module.router_logits.register_forward_hook(lambda _, __, logits: seen.append(logits))
    hidden = torch.randn(2, 5, 16)
    output = module(hidden)
    assert output.shape == hidden.shape
    assert seen[0].shape == (10, 4)


def test_native_experts_equal_stacked_ones():
    pytest.importorskip("deepspeed")
    torch.manual_seed(0)
    native = NativeExperts(16, 8, num_experts=4, top_k=2)
    stacked = ExpertFeedForward(16, 8, num_experts=4, top_k=2)
    inner = native.moe.deepspeed_moe
    stacked.gate.weight.data = inner.gate.wg.weight.data
    for index, expert in enumerate(inner.experts.deepspeed_experts):
        stacked.experts.gate_up_proj.data[index] = expert.gate_up_proj.weight.data
        stacked.experts.down_proj.data[index] = expert.down_proj.weight.data
    hidden = torch.randn(2, 7, 16)
    torch.testing.assert_close(native(hidden), stacked(hidden), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2])
def test_router_losses_have_their_known_values_at_balance(top_k):
    # Each token prefers one expert a little, in turn: assignments and probabilities are balanced.
    logits = 1e-3 * torch.eye(4).repeat(3, 1) + 1e-4 * torch.eye(4).roll(1, 1).repeat(3, 1)
    load_balance, z_loss = router_losses(logits, torch.ones(12, dtype=torch.bool), top_k)
    torch.testing.assert_close(load_balance, torch.tensor(1.0))
    expected = torch.tensor(4.0).log().square()
    torch.testing.assert_close(z_loss, expected, atol=2e-3, rtol=0)


def test_load_balance_loss_is_the_number_of_experts_at_collapse():
    logits = torch.tensor([[50.0, 0, 0, 0]]).repeat(6, 1)
    load_balance, _ = router_losses(logits, torch.ones(6, dtype=torch.bool), 1)
    torch.testing.assert_close(load_balance, torch.tensor(4.0))


def test_padding_changes_neither_router_loss_nor_its_gradient():
    torch.manual_seed(0)
    real = torch.randn(7, 4)
    results = []
    for padding in (0, 5):
        logits = torch.cat([real, 10 * torch.randn(padding, 4)]).requires_grad_()
        mask = torch.arange(7 + padding) < 7
        load_balance, z_loss = router_losses(logits, mask, 2)
        (load_balance + z_loss).backward()
        assert torch.equal(logits.grad[7:], torch.zeros(padding, 4))
        results.append((load_balance.detach(), z_loss.detach(), logits.grad[:7]))
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(plain, padded, atol=1e-7, rtol=1e-6)


def test_router_losses_of_padding_alone_are_zero():
    losses = router_losses(torch.randn(3, 4), torch.zeros(3, dtype=torch.bool), 1)
    assert [float(loss) for loss in losses] == [0.0, 0.0]


def test_top_k_above_num_experts_is_refused():
    with pytest.raises(ValueError, match="top_k = 3 is more than num_experts = 2"):
        ExpertsConfig(num_experts=2, top_k=3)


def test_experts_that_ranks_cannot_share_evenly_are_refused():
    with pytest.raises(ValueError, match="num_experts = 3 is not a multiple of ep_size = 2"):
        ExpertsConfig(num_experts=3, ep_size=2)
