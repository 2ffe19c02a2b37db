import copy

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model import expert_kernels
from model.experts import (
    MixtureFeedForward,
    NativeExperts,
    RoutedExperts,
    StackedExperts,
    upcycled,
)
from model.feed_forward import DenseFeedForward
from model.router import RouterProbe, expert_capacity, router_losses
from tests.unit.model.tiny import NEEDS_CXX


def naive_experts(module: RoutedExperts, tokens, capacity=None):
    """One token and one expert at a time, float64, by operations that autograd knows."""
    gate, up_weights, down_weights = (
        w.double() for w in (module.gate.weight, *module.experts.parameters())
    )
    probabilities = (tokens @ gate.T).softmax(1)
    chosen = probabilities.argsort(dim=1, descending=True)[:, : module.top_k]
    outputs = [torch.zeros_like(token) for token in tokens]
    taken = [0] * module.num_experts
    for choice in range(module.top_k):
        for i, token in enumerate(tokens):
            weight, expert = probabilities[i, chosen[i, choice]], int(chosen[i, choice])
            if module.top_k > 1:
                weight = weight / probabilities[i, chosen[i]].sum()
            taken[expert] += 1
            if capacity is not None and taken[expert] > capacity:
                continue
            a, b = (up_weights[expert] @ token).chunk(2)
            output = down_weights[expert] @ (a * torch.sigmoid(a) * b)
            outputs[i] = outputs[i] + weight * output
    return torch.stack(outputs)


def result_and_gradients(module, compute, tokens):
    """Output, and the gradients of tokens and parameters under a loss that tells rows apart."""
    tokens = tokens.clone().requires_grad_()
    output = compute(tokens)
    scale = torch.linspace(0.5, 2, output.numel(), dtype=output.dtype).view_as(output)
    inputs = [tokens, *module.parameters()]
    return [output, *torch.autograd.grad((output * scale).square().sum(), inputs)]


@pytest.fixture(params=["looped", "looped in blocks of 2", "grouped"])
def way(request, monkeypatch):
    """The two ways to compute, on the CPU; the loop also with experts of more than one block."""
    if request.param == "grouped":
        monkeypatch.setattr("model.experts.looped_experts", expert_kernels.grouped_experts)
    elif request.param != "looped":
        monkeypatch.setattr(expert_kernels, "BLOCK_ROWS", 2)
    return request.param


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("capacity_factor", [None, 1.25, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_equal_a_naive_float64_loop(way, top_k, capacity_factor, dtype):
    if way == "grouped" and dtype == torch.float64:
        pytest.skip("grouped_mm takes no float64")
    torch.manual_seed(top_k)
    module = RoutedExperts(
        16, 8, num_experts=5, top_k=top_k, capacity_factor=capacity_factor
    ).double()
    module.gate.weight.data[0] += 0.3  # uneven, so that a capacity drops some
    tokens = torch.randn(21, 16, dtype=torch.float64) + 0.2
    capacity = capacity_factor and expert_capacity(capacity_factor, 21, num_experts=5, top_k=top_k)
    expected = result_and_gradients(
        module, lambda tokens: naive_experts(module, tokens, capacity), tokens
    )
    if capacity_factor == 0.5:
        assert not torch.allclose(expected[0], naive_experts(module, tokens))
    module.to(dtype)
    ours = result_and_gradients(module, module, tokens.to(dtype))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for value, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(value.double(), reference, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("capacity_factor", [None, 0.7])
def test_gradients_pass_gradcheck(capacity_factor):
    torch.manual_seed(0)
    module = RoutedExperts(3, 2, num_experts=3, top_k=2, capacity_factor=capacity_factor).double()
    tokens = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def compute(tokens, *weights):
        named = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, named, (tokens,))

    weights = [parameter.detach().requires_grad_() for parameter in module.parameters()]
    assert torch.autograd.gradcheck(compute, (tokens, *weights))


def test_widths_that_grouped_mm_refuses_are_seen():
    tokens, weight = torch.zeros(3, 16), torch.zeros(2, 16, 16)
    assert expert_kernels.grouped_mm_takes(tokens, weight)
    assert not expert_kernels.grouped_mm_takes(tokens[:, :6], weight[..., :6])
    assert not expert_kernels.grouped_mm_takes(tokens, weight.bfloat16())
    assert not expert_kernels.grouped_mm_takes(tokens.double(), weight.double())
    assert not expert_kernels.grouped_mm_takes(tokens[:0], weight)


def copy_dense(dense: DenseFeedForward, experts: StackedExperts) -> None:
    for weight, source in (
        (experts.gate_up_proj, dense.gate_up_proj.weight),
        (experts.down_proj, dense.down_proj.weight),
    ):
        weight.data[:] = source.data


def test_one_expert_equals_the_dense_block(way):
    torch.manual_seed(0)
    dense, module = DenseFeedForward(16, 8), RoutedExperts(16, 8, num_experts=1, top_k=1)
    copy_dense(dense, module.experts)
    hidden = torch.randn(2, 5, 16)
    torch.testing.assert_close(module(hidden), dense(hidden), atol=1e-6, rtol=0)


def test_identical_experts_equal_the_dense_block(way):
    torch.manual_seed(0)
    dense, module = DenseFeedForward(16, 8), RoutedExperts(16, 8, num_experts=4, top_k=3)
    copy_dense(dense, module.experts)
    hidden = torch.randn(2, 5, 16)
    torch.testing.assert_close(module(hidden), dense(hidden), atol=1e-6, rtol=0)


def test_an_expert_without_tokens_gets_a_zero_gradient(way):
    module = RoutedExperts(16, 8, num_experts=4, top_k=1)
    torch.nn.init.zeros_(module.gate.weight)
    module.gate.weight.data[2] = 1.0
    module(torch.rand(1, 5, 16)).sum().backward()
    for parameter in module.experts.parameters():
        used = parameter.grad.abs().sum((1, 2)) > 0
        assert used.tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_without_tokens_every_gradient_is_zero(dtype, capacity_factor):
    module = MixtureFeedForward(
        RoutedExperts(16, 8, num_experts=4, top_k=2, capacity_factor=capacity_factor),
        DenseFeedForward(16, 8),
    ).to(dtype)
    hidden = torch.randn(2, 3, 16).to(dtype).requires_grad_()
    output = module(hidden, torch.zeros(0, dtype=torch.long))
    assert torch.equal(output, torch.zeros(2, 3, 16, dtype=dtype))
    output.sum().backward()
    assert all(not p.grad.any() for p in [hidden, *module.parameters()])


def test_stacked_experts_start_different():
    weight = StackedExperts(8, 8, 3).gate_up_proj
    assert not torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[1], weight[2])


def test_bf16_stays_near_fp32(way):
    torch.manual_seed(0)
    module = RoutedExperts(16, 8, num_experts=4, top_k=2).bfloat16()
    tokens = torch.randn(12, 16).bfloat16()
    ours = result_and_gradients(module, module, tokens)
    assert {value.dtype for value in ours} == {torch.bfloat16}
    module.float()
    expected = result_and_gradients(module, module, tokens.float())
    for value, reference in zip(ours, expected, strict=True):
        error = (value.float() - reference).norm() / reference.norm()
        assert error < 0.02


def test_evaluation_repeats_and_drops_nothing():
    torch.manual_seed(0)
    module = RoutedExperts(16, 8, num_experts=4, top_k=2, capacity_factor=0.5)
    hidden = torch.randn(2, 9, 16)
    trained, evaluated = module(hidden), module.eval()(hidden)
    assert not torch.allclose(trained, evaluated)
    assert torch.equal(evaluated, module(hidden))
    # The same tokens alone, whatever else is in the batch.
    torch.testing.assert_close(module(hidden[:1]), evaluated[:1], atol=1e-6, rtol=0)
    expected = naive_experts(module, hidden.flatten(0, 1).double()).view(2, 9, 16)
    torch.testing.assert_close(evaluated.double(), expected, atol=2e-6, rtol=0)


def test_gradients_repeat_bit_by_bit(way):
    torch.manual_seed(0)
    module = RoutedExperts(16, 8, num_experts=4, top_k=2)
    tokens = torch.randn(40, 16)
    first, second = (result_and_gradients(module, module, tokens) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shared", [False, True])
def test_padding_changes_neither_outputs_nor_losses_nor_drops(shared):
    torch.manual_seed(0)
    routed = RoutedExperts(16, 8, num_experts=4, top_k=2, capacity_factor=0.75)
    module = MixtureFeedForward(routed, DenseFeedForward(16, 8) if shared else None)
    store = {}
    RouterProbe(store, 0, jitter=0.0).attach(routed.gate)
    real = torch.randn(7, 16)
    tokens = torch.tensor([0, 1, 2, 5, 6, 8, 9])
    results = []
    for padding in (None, torch.zeros(5, 16), 100 * torch.randn(5, 16)):
        hidden, index = real.unsqueeze(0), None
        if padding is not None:
            hidden, index = torch.empty(12, 16), tokens
            hidden[tokens] = real
            hidden[[3, 4, 7, 10, 11]] = padding
            hidden = hidden.view(2, 6, 16)
        hidden.requires_grad_()
        output = module(hidden, index).flatten(0, 1)
        losses = router_losses(store[0], 2)
        gradients = torch.autograd.grad(
            output.square().sum() + sum(losses), [hidden, *module.parameters()]
        )
        rows = slice(None) if index is None else index
        if index is not None:
            padded = [i for i in range(12) if i not in tokens.tolist()]
            assert not output[padded].any()
            assert not gradients[0].flatten(0, 1)[padded].any()
        results.append([output[rows], *losses, gradients[0].flatten(0, 1)[rows], *gradients[1:]])
    for plain, zeros, noise in zip(*results, strict=True):
        assert torch.equal(zeros, noise)
        torch.testing.assert_close(plain, zeros, atol=1e-6, rtol=1e-5)


def test_a_replaced_mixture_gets_three_dimensions():
    class Replaced(torch.nn.Module):
        def forward(self, hidden):
            batch, length, width = hidden.shape
            return 2 * hidden

    module = MixtureFeedForward(Replaced())
    hidden = torch.ones(2, 3, 4)
    output = module(hidden, torch.tensor([1, 4]))
    assert output.flatten(0, 1)[:, 0].tolist() == [0, 2, 0, 0, 2, 0]


def test_the_shared_expert_is_added():
    torch.manual_seed(0)
    routed, shared = RoutedExperts(16, 8, num_experts=4, top_k=2), DenseFeedForward(16, 8)
    hidden = torch.randn(2, 5, 16)
    expected = routed(hidden) + shared(hidden)
    assert torch.equal(MixtureFeedForward(routed, shared)(hidden), expected)


def test_the_meta_device_gives_shapes():
    sizes = {"num_experts": 4, "top_k": 2, "capacity_factor": 1.0}
    module = MixtureFeedForward(RoutedExperts(16, 8, **sizes), DenseFeedForward(16, 8)).to("meta")
    hidden = torch.empty(2, 5, 16, device="meta", requires_grad=True)
    output = module(hidden)
    assert output.is_meta
    assert output.shape == hidden.shape
    output.sum().backward()
    assert all(p.grad.shape == p.shape for p in module.routed.experts.parameters())


def test_checkpointing_and_copies_change_nothing():
    torch.manual_seed(0)
    module = MixtureFeedForward(RoutedExperts(16, 8, num_experts=4, top_k=2))
    store = {}
    RouterProbe(store, 0, jitter=0.3).attach(module.routed.gate)
    copied = copy.deepcopy(module)
    tokens = torch.randn(1, 9, 16)

    def compute(used, checkpointed):
        torch.manual_seed(1)  # the noise of the router
        if not checkpointed:
            return result_and_gradients(used, used, tokens)
        run = lambda tokens: checkpoint(used, tokens, use_reentrant=False)  # noqa: E731
        return result_and_gradients(used, run, tokens)

    plain = compute(module, False)
    for other in (compute(module, True), compute(copied, False)):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_CXX)])
def test_torch_compile_may_wrap_the_experts(backend):
    torch.manual_seed(0)
    module = RoutedExperts(16, 8, num_experts=4, top_k=2)
    compiled = torch.compile(module, backend=backend)
    for num_tokens in (9, 5):
        tokens = torch.randn(num_tokens, 16)
        ours = result_and_gradients(module, compiled, tokens)
        expected = result_and_gradients(module, module, tokens)
        for value, reference in zip(ours, expected, strict=True):
            torch.testing.assert_close(value, reference, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("top_k", [2, 3])
def test_an_upcycled_mixture_computes_what_the_dense_one_did(shared, top_k):
    torch.manual_seed(0)
    dense = DenseFeedForward(16, 8)
    module = MixtureFeedForward(
        RoutedExperts(16, 8, num_experts=4, top_k=top_k),
        DenseFeedForward(16, 8) if shared else None,
    )
    weights = upcycled(dense.state_dict(), 4, top_k=top_k, shared_expert=shared)
    missing, unexpected = module.load_state_dict(weights, strict=False)
    kept = {"routed.gate.weight"} | ({"shared.gate_up_proj.weight"} if shared else set())
    assert (set(missing), unexpected) == (kept, [])
    hidden = torch.randn(2, 5, 16)
    torch.testing.assert_close(module(hidden), dense(hidden), atol=1e-6, rtol=0)
    # Copies, not one tensor: experts are trained apart.
    experts = weights["routed.experts.down_proj"]
    experts[0] += 1
    assert torch.equal(experts[1], dense.down_proj.weight)


def test_upcycling_to_one_choice_is_refused():
    weights = DenseFeedForward(16, 8).state_dict()
    with pytest.raises(ValueError, match="cannot become 4 experts with top_k = 1.*take top_k of 2"):
        upcycled(weights, 4, top_k=1)
    assert upcycled(weights, 1, top_k=1)["routed.experts.down_proj"].shape == (1, 16, 8)


def test_upcycling_another_form_is_refused():
    weights = DenseFeedForward(16, 8, form="gelu").state_dict()
    with pytest.raises(ValueError, match="not a dense swiglu feed-forward: no gate_up_proj.weight"):
        upcycled(weights, 4, top_k=2)


@pytest.mark.parametrize("top_k", [1, 2])
def test_top_k_weights_equal_those_of_deepspeed_autoep(top_k):
    router_module = pytest.importorskip("deepspeed.moe.ep_router")
    torch.manual_seed(0)
    ours = RoutedExperts(16, 8, num_experts=6, top_k=top_k)
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
    torch.testing.assert_close(ours(tokens), expected, atol=1e-6, rtol=0)


def test_native_experts_start_different():
    pytest.importorskip("deepspeed")
    module = NativeExperts(16, 8, num_experts=4, top_k=2)
    first, second = module.moe.deepspeed_moe.experts.deepspeed_experts[:2]
    assert not torch.equal(first.gate_up_proj.weight, second.gate_up_proj.weight)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_native_experts_equal_stacked_ones(top_k):
    pytest.importorskip("deepspeed")
    torch.manual_seed(0)
    native = NativeExperts(16, 8, num_experts=4, top_k=top_k)
    stacked = RoutedExperts(16, 8, num_experts=4, top_k=top_k)
    inner = native.moe.deepspeed_moe
    stacked.gate.weight.data = inner.gate.wg.weight.data
    for index, expert in enumerate(inner.experts.deepspeed_experts):
        stacked.experts.gate_up_proj.data[index] = expert.gate_up_proj.weight.data
        stacked.experts.down_proj.data[index] = expert.down_proj.weight.data
    hidden, real = torch.randn(2, 7, 16), torch.tensor([0, 1, 4, 5, 6, 9])
    for tokens in (None, real):
        ours, theirs = MixtureFeedForward(stacked), MixtureFeedForward(native)
        torch.testing.assert_close(
            theirs(hidden, tokens), ours(hidden, tokens), atol=1e-6, rtol=1e-5
        )


def test_native_experts_without_tokens_give_zero_gradients():
    pytest.importorskip("deepspeed")
    native, store = NativeExperts(16, 8, num_experts=4, top_k=2), {}
    RouterProbe(store, 0, jitter=0.1).attach(native.router_logits)
    output = MixtureFeedForward(native)(torch.randn(2, 3, 16), torch.zeros(0, dtype=torch.long))
    output.sum().backward()
    assert store[0].shape == (0, 4)
    assert all(not p.grad.any() for p in native.parameters())
