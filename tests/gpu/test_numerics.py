"""The model on each device and in each precision, against float64 on a CPU."""

import copy

import pytest
import torch

from model.expert_kernels import grouped_experts, grouped_mm_takes, looped_experts
from model.loss import chunked_cross_entropy
from model.router import choose_experts, expert_capacity
from tests.unit.model.tiny import tiny_batch, tiny_flamingo

EXPERTS = {"num_experts": 4, "top_k": 2, "every": 1}
MODELS = {
    "dense": {},
    "experts": {"experts": EXPERTS},
    "experts with a capacity": {"experts": EXPERTS | {"capacity_factor": 1.0}},
    "norms of queries and keys, all images": {
        "cross_attention": {
            "attend": "all_previous",
            "norm": "rms_norm",
            "qk_norm": True,
            "gate": "vector",
        }
    },
    "text alone and pairs": {"losses": {"language": 0.5, "contrastive": 0.5, "embed_dim": 16}},
}
# Largest distance to float64, as a share of what is compared. Half precision has 8 bits behind the point,
# and the smallest gradients are sums that mostly cancel.
LOSS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
GRADIENT = {torch.float32: 2e-4, torch.bfloat16: 0.25}


def distance(got, want):
    """Of two lists of tensors, in float64, over all their elements together."""
    got, want = (torch.cat([t.detach().double().cpu().flatten() for t in ts]) for ts in (got, want))
    return float((got - want).norm() / want.norm())


def batch_on(device, dtype, seed, *, packed):
    batch = tiny_batch(seed)
    if packed:
        batch["documents"] = torch.tensor([[0] * 7 + [-1] * 2, [0] * 5 + [1] * 4])
    media = batch.pop("media").to(torch.device(device), dtype)
    return {"media": media} | {name: tensor.to(device) for name, tensor in batch.items()}


def losses_and_gradients(model, batch):
    output = model(**batch)
    terms = [output.loss_sum, output.load_balance_loss, output.z_loss]
    terms += [t for t in (output.language_loss_sum, output.contrastive_loss) if t is not None]
    sum(terms).backward()
    return terms, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed rows"])
def test_losses_and_gradients_are_those_of_float64(device, dtype, kind, packed, seed):
    model = tiny_flamingo(seed=seed, **MODELS[kind]).train()
    # Weights that half precision can hold: what differs is then what is computed with them.
    model = model.to(dtype)
    exact = copy.deepcopy(model).double()
    exact.routers.attach()
    batch = batch_on(device, dtype, seed, packed=packed)
    reference = batch_on("cpu", torch.float64, seed, packed=packed)
    reference["media"] = batch["media"].to(torch.device("cpu"), torch.float64)
    terms, gradients = losses_and_gradients(model.to(device), batch)
    wanted_terms, wanted_gradients = losses_and_gradients(exact, reference)
    if dtype == torch.bfloat16 and "experts" in MODELS[kind]:
        # A token between two experts may go to the other one.
        return assert_near(terms, wanted_terms, 0.1)
    assert_near(terms, wanted_terms, LOSS[dtype])
    assert_near(gradients, wanted_gradients, GRADIENT[dtype])


def assert_near(got, want, limit):
    assert len(got) == len(want)
    assert distance(got, want) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("compute", [looped_experts, grouped_experts])
@pytest.mark.parametrize("capacity", [None, 0.5])
def test_experts_are_those_of_float64_and_repeat(device, dtype, compute, capacity, seed):
    """With experts that get no token, tokens that are dropped, and fresh memory full of NaN."""
    tokens = torch.randn(100, 32).to(dtype)
    weights = [torch.randn(6, 128, 32).to(dtype) / 6, torch.randn(6, 32, 64).to(dtype) / 8]
    logits = torch.randn(100, 6)
    logits[:, 2] = -50.0
    room = capacity and expert_capacity(capacity, 100, num_experts=6, top_k=2)
    scale = torch.linspace(0.5, 2, 3200).view(100, 32)

    def computed(way, device, dtype):
        inputs = [t.to(device, dtype).requires_grad_() for t in (tokens, *weights)]
        routes = choose_experts(logits.to(device), 2, room)
        routes = routes._replace(weights_XK=routes.weights_XK.to(dtype))
        output = way(inputs[0], routes, *inputs[1:])
        return [output, *torch.autograd.grad((output * scale.to(device, dtype)).sum(), inputs)]

    assert grouped_mm_takes(tokens, *weights)
    torch.use_deterministic_algorithms(True)  # fills what nothing was written to
    try:
        got = computed(compute, device, dtype)
    finally:
        torch.use_deterministic_algorithms(False)
    again = computed(compute, device, dtype)
    want = computed(looped_experts, "cpu", torch.float64)
    for one, other, exact in zip(got, again, want, strict=True):
        assert torch.equal(one, other)
        assert_near([one], [exact], {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_loss_in_chunks_is_that_of_all_logits(device, dtype, seed):
    hidden, head = torch.randn(700, 32).to(dtype), torch.randn(5000, 32).to(dtype)
    targets = torch.randint(5000, (700,))

    def ours(hidden, head, targets):
        rows = hidden.new_zeros(0, 32)
        loss, _ = chunked_cross_entropy(
            hidden, rows, targets, lambda h, _: h @ head.T, vocabulary=5000
        )
        return loss

    def whole(hidden, head, targets):
        return torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="sum")

    def computed(way, device, dtype):
        moved = hidden.to(device, dtype).requires_grad_()
        loss = way(moved, head.to(device, dtype), targets.to(device))
        return [loss], list(torch.autograd.grad(loss, [moved]))

    (loss, gradient), (exact, wanted) = (
        computed(ours, device, dtype),
        computed(whole, "cpu", torch.float64),
    )
    assert_near(loss, exact, {torch.float32: 1e-6, torch.bfloat16: 1e-3}[dtype])
    assert_near(gradient, wanted, {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype])


def test_greedy_generation_says_the_same_on_every_device(device, seed):
    model = tiny_flamingo(seed=seed).double()
    batch = batch_on("cpu", torch.float64, seed, packed=False)
    prompt = {"media": batch["media"], "input_ids": batch["input_ids"][:, :7]}
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"], dtype=torch.bool)
    said = model.generate(**prompt, max_new_tokens=8, pad_token_id=0)
    media = prompt.pop("media").to(torch.device(device), torch.float64)
    moved = {name: tensor.to(device) for name, tensor in prompt.items()}
    again = model.to(device).generate(media, **moved, max_new_tokens=8, pad_token_id=0)
    assert torch.equal(said, again.cpu())
