import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from model.config import ExpertsConfig
from model.experts import MixtureFeedForward, NativeExperts, RoutedExperts
from model.feed_forward import DenseFeedForward
from model.router import (
    RouterGate,
    RouterProbe,
    choose_experts,
    expert_capacity,
    find_router,
    router_losses,
)


def naive_choice(logits, top_k, capacity=None):
    """One assignment at a time: lists of (token, choice) per expert, in the order of admission."""
    taken = [[] for _ in range(logits.shape[1])]
    for choice in range(top_k):
        for token, row in enumerate(logits):
            expert = int(row.argsort(descending=True)[choice])
            if capacity is None or len(taken[expert]) < capacity:
                taken[expert].append((token, choice))
    return taken


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("capacity", [None, 0, 1, 3, 100])
def test_choices_and_drops_equal_a_naive_loop(top_k, capacity):
    torch.manual_seed(top_k)
    logits = torch.randn(11, 5) + torch.tensor([2.0, 1, 0, 0, 0])
    routes = choose_experts(logits, top_k, capacity)
    expected = naive_choice(logits, top_k, capacity)
    assert routes.counts_E.tolist() == [len(taken) for taken in expected]
    kept = [assignment for taken in expected for assignment in taken]
    assert routes.source_N[: len(kept)].tolist() == [token for token, _ in kept]
    places = [int(routes.place_XK[token, choice]) for token, choice in kept]
    assert places == list(range(len(kept)))
    assert sorted(routes.place_XK.flatten().tolist()) == list(range(11 * top_k))


def test_weights_are_not_renormalised_after_a_drop():
    logits = torch.tensor([[3.0, 1.0, 0.0]]).repeat(4, 1)
    free, full = choose_experts(logits, 2), choose_experts(logits, 2, capacity=1)
    assert torch.equal(free.weights_XK, full.weights_XK)
    torch.testing.assert_close(free.weights_XK.sum(1), torch.ones(4))


def test_one_choice_is_weighted_with_its_probability():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(choose_experts(logits, 1).weights_XK, torch.tensor([[0.75]]))


def test_capacity_is_the_even_share_times_the_factor_rounded_up():
    assert expert_capacity(1.25, 10, num_experts=4, top_k=2) == 7  # 6.25
    assert expert_capacity(1.0, 10, num_experts=5, top_k=2) == 4
    assert expert_capacity(1.0, 0, num_experts=5, top_k=2) == 0


def test_router_logits_are_fp32_in_bf16_and_fp64_in_fp64():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        gate = RouterGate(6, 4, bias=False).to(dtype)
        assert gate(torch.randn(3, 6).to(dtype)).dtype == expected


@pytest.mark.parametrize("build", [RouterGate, nn.Linear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_reaches_the_logits_in_training_only(build, dtype):
    torch.manual_seed(0)
    router, store = build(6, 4, bias=False).to(dtype), {}
    tokens = torch.randn(5, 6).to(dtype)
    plain = router(tokens)
    RouterProbe(store, 3, jitter=0.2).attach(router)
    router.eval()
    assert torch.equal(router(tokens), plain)
    assert torch.equal(store[3], plain)
    noisy = router.train()(tokens)
    assert noisy.dtype == plain.dtype
    assert not torch.equal(noisy, plain)
    assert store[3] is noisy
    assert not torch.equal(router(tokens), noisy)


def test_noise_is_uniform_around_one():
    torch.manual_seed(0)
    router = nn.Linear(1000, 1000, bias=False)
    nn.init.eye_(router.weight)
    RouterProbe({}, 0, jitter=0.1).attach(router)
    noise = router(torch.ones(200, 1000)).detach()
    assert 0.9 <= float(noise.min()) < 0.901
    assert 1.099 < float(noise.max()) <= 1.1
    torch.testing.assert_close(noise.mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(noise.std(), torch.tensor(0.2 / 12**0.5), atol=1e-3, rtol=0)


def test_without_jitter_training_draws_no_random_numbers():
    router = RouterGate(6, 4, bias=False)
    RouterProbe({}, 0, jitter=0.0).attach(router)
    before = torch.get_rng_state()
    router(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copied_model_keeps_its_logits_apart():
    model = nn.Module()
    model.store = {}
    model.router = RouterGate(6, 4, bias=False)
    RouterProbe(model.store, 0, jitter=0.0).attach(model.router)
    copied = copy.deepcopy(model)
    nn.init.zeros_(copied.router.weight)
    tokens = torch.randn(5, 6)
    model.router(tokens)
    assert copied.store == {}
    copied.router(tokens)
    assert torch.equal(copied.store[0], torch.zeros(5, 4))
    assert not torch.equal(model.store[0], copied.store[0])


def test_the_router_of_each_kind_of_feed_forward_is_found():
    sizes = {"num_experts": 4, "top_k": 2}
    assert find_router(DenseFeedForward(8, 4)) is None
    ours = MixtureFeedForward(RoutedExperts(8, 4, **sizes), DenseFeedForward(8, 4))
    assert find_router(ours) is ours.routed.gate
    autoep = nn.Module()
    autoep.router = nn.Module()
    autoep.router.gate = nn.Linear(8, 4, bias=False)
    autoep.gate = autoep.router  # AutoEP may hold its router under our name as well
    ours.routed = autoep
    assert find_router(ours) is autoep.router.gate


def test_deepspeeds_own_router_is_found_and_takes_noise():
    pytest.importorskip("deepspeed")
    torch.manual_seed(0)
    module = MixtureFeedForward(NativeExperts(8, 4, num_experts=4, top_k=2))
    store, hidden = {}, torch.randn(2, 5, 8)
    plain = module(hidden)
    RouterProbe(store, 0, jitter=0.5).attach(find_router(module))
    noisy = module(hidden)
    weight = module.routed.moe.deepspeed_moe.gate.wg.weight
    expected = hidden.flatten(0, 1) @ weight.T
    assert store[0].shape == (10, 4)
    assert not torch.allclose(store[0], expected)
    assert not torch.allclose(noisy, plain)  # the choice and its weights follow the noise
    assert torch.equal(module.eval()(hidden), plain)
    torch.testing.assert_close(store[0], expected)


def naive_losses(logits, top_k):
    """The textbook form over one batch, float64."""
    logits = logits.double()
    num_tokens, num_experts = logits.shape
    counts = torch.zeros(num_experts, dtype=torch.float64)
    for row in logits:
        for expert in row.argsort(descending=True)[:top_k]:
            counts[expert] += 1 / (num_tokens * top_k)
    load_balance = num_experts * (counts * logits.softmax(1).mean(0)).sum()
    return load_balance, logits.exp().sum(1).log().square().mean()


@pytest.mark.parametrize("top_k", [1, 2])
def test_router_losses_equal_the_textbook(top_k):
    torch.manual_seed(0)
    logits = torch.randn(13, 5)
    for loss, expected in zip(
        router_losses(logits, top_k), naive_losses(logits, top_k), strict=True
    ):
        torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2])
def test_router_losses_have_their_known_values_at_balance(top_k):
    # Each token prefers one expert a little, in turn: assignments and probabilities are balanced.
    logits = 1e-3 * torch.eye(4).repeat(3, 1) + 1e-4 * torch.eye(4).roll(1, 1).repeat(3, 1)
    load_balance, z_loss = router_losses(logits, top_k)
    torch.testing.assert_close(load_balance, torch.tensor(1.0))
    torch.testing.assert_close(z_loss, torch.tensor(4.0).log().square(), atol=2e-3, rtol=0)


def test_load_balance_loss_is_the_number_of_experts_at_collapse():
    load_balance, _ = router_losses(torch.tensor([[50.0, 0, 0, 0]]).repeat(6, 1), 1)
    torch.testing.assert_close(load_balance, torch.tensor(4.0))


def test_router_losses_without_tokens_are_zeros_with_a_gradient():
    weight = torch.randn(4, 6, requires_grad=True)
    losses = router_losses(torch.zeros(0, 6) @ weight.T, 2)
    assert [float(loss) for loss in losses] == [0.0, 0.0]
    sum(losses).backward()
    assert torch.equal(weight.grad, torch.zeros(4, 6))


def test_router_losses_take_the_meta_device():
    load_balance, z_loss = router_losses(torch.empty(7, 4, device="meta"), 2)
    assert load_balance.shape == z_loss.shape == ()


def _one_rank(rank, meeting, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(2))
    results = []
    for first in (3, 10):  # uneven on purpose, and a rank without any token
        rows = slice(0, first) if rank == 0 else slice(first, 10)
        weight = torch.eye(4, requires_grad=True)
        losses = torch.stack(router_losses(logits[rows] @ weight, 2))
        losses.sum().backward()
        losses = losses.detach()
        for tensor in (losses, weight.grad):
            dist.all_reduce(tensor)
            tensor /= 2
        results.append((losses.numpy(), weight.grad.numpy()))
    if rank == 0:
        queue.put(results)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_ranks_give_the_losses_and_gradients_of_the_joined_batch(tmp_path):
    meeting = tmp_path / "meeting"  # a port may be taken before they are there
    context = mp.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_one_rank, args=(r, meeting, queue)) for r in range(2)]
    for process in ranks:
        process.start()
    results = queue.get(timeout=300)
    for process in ranks:
        process.join(120)

    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(2))
    weight = torch.eye(4, requires_grad=True)
    expected = torch.stack(router_losses(logits @ weight, 2))
    expected.sum().backward()
    for losses, gradient in results:
        torch.testing.assert_close(torch.from_numpy(losses), expected.detach())
        torch.testing.assert_close(torch.from_numpy(gradient), weight.grad)


def test_top_k_above_num_experts_is_refused():
    with pytest.raises(ValueError, match="top_k = 3 is more than num_experts = 2"):
        ExpertsConfig(num_experts=2, top_k=3)
