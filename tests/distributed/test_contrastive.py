"""Head and towers over ranks give what the joined batch gives, for every spread of the pairs."""

import pytest
import torch

from model.contrastive_loss import ContrastiveHead, gather_rows
from tests.helpers.processes import run_processes

pytestmark = pytest.mark.distributed

FORMS = ("info_nce", "sigmoid")
# For two ranks of three rows and for three of two.
VALID = {
    "uneven": [True, False, False, True, True, True],
    "a rank without": [True, True, True, False, False, False],
    "one pair": [False, False, False, False, True, False],
    "none": [False] * 6,
    "all": None,
}
CASES = [(form, spread) for form in FORMS for spread in VALID]


def head_and_batch(form):
    torch.manual_seed(0)
    head = ContrastiveHead(5, 7, 4, form)
    with torch.no_grad():
        head.pairs.log_scale.fill_(1.0)
        if form == "sigmoid":
            head.pairs.bias.fill_(-1.0)
    return head, torch.randn(6, 2, 5), torch.randn(6, 7)


def loss_and_gradients(form, spread, part, *, across_ranks):
    head, latents, text = head_and_batch(form)
    valid = None if VALID[spread] is None else torch.tensor(VALID[spread])[part]
    loss, accuracy = head(latents[part], text[part], valid, across_ranks=across_ranks)
    loss.backward()
    return [loss.detach(), accuracy, *(p.grad for p in head.parameters())]


def tower_gradients(part):
    """In training mode the towers join the ranks by themselves."""
    from tests.unit.model.test_contrastive import batch, towers  # loads transformers

    model = towers().train()
    loss = model(*(t[part] for t in batch(6))).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def zero3_step(form, part):
    """The weights after one step of DeepSpeed at a rate of 1, with all of them divided."""
    import deepspeed

    head, latents, text = head_and_batch(form)
    config = {
        "train_batch_size": 2,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=head, optimizer=optimizer, config=config)
    valid = torch.tensor(VALID["uneven"])[part]
    loss, _ = engine(latents[part], text[part], valid)
    engine.backward(loss)
    engine.step()
    with deepspeed.zero.GatheredParameters(list(head.parameters())):
        return [p.tolist() for p in head.parameters()]


def on_rank(info):
    each = 6 // info.world_size
    part = slice(info.rank * each, (info.rank + 1) * each)
    found = {}
    for case in CASES:
        tensors = loss_and_gradients(*case, part, across_ranks=True)
        found[case] = [t.tolist() for t in tensors]
    if info.world_size == 2:
        found["towers"] = [t.tolist() for t in tower_gradients(part)]
        found["zero3"] = {form: zero3_step(form, part) for form in FORMS}
    rows = torch.full((1, 2), float(info.rank), requires_grad=True)
    joined = gather_rows(rows)
    given = torch.ones_like(joined)
    (taken,) = torch.autograd.grad(joined, rows, given)
    found["rows"] = [joined.tolist(), taken.tolist(), given.tolist()]
    return found


@pytest.mark.parametrize("processes", [2, 3])
def test_the_mean_over_ranks_is_the_joined_batch(processes):
    ranks = run_processes(on_rank, processes)
    for case in CASES:
        expected = loss_and_gradients(*case, slice(0, 6), across_ranks=False)
        check_means([rank[case] for rank in ranks], expected, case)
        for place in (0, 1):
            assert len({rank[case][place] for rank in ranks}) == 1, f"{case}: one loss for all"
    for rank in ranks:
        joined, taken, given = rank["rows"]
        assert joined == [[float(r)] * 2 for r in range(processes)]
        assert taken == [[float(processes)] * 2]
        assert given == [[1.0] * 2] * processes, "what autograd handed in is left as it was"
    if processes == 2:
        check_means([rank["towers"] for rank in ranks], tower_gradients(slice(0, 6)), "towers")
        check_zero3_steps(ranks)


def check_means(ranks, expected, name):
    for place, tensor in enumerate(expected):
        found = torch.stack([torch.tensor(rank[place]) for rank in ranks]).mean(0)
        where = f"{name}, place {place}"
        torch.testing.assert_close(
            found, tensor, atol=1e-6, rtol=1e-5, msg=lambda m, w=where: f"{w}: {m}"
        )


def check_zero3_steps(ranks):
    for form in FORMS:
        head, *_ = head_and_batch(form)
        gradients = loss_and_gradients(form, "uneven", slice(0, 6), across_ranks=False)[2:]
        for rank in ranks:
            weights = rank["zero3"][form]
            for p, gradient, weight in zip(head.parameters(), gradients, weights, strict=True):
                expected = p.detach() - gradient
                torch.testing.assert_close(torch.tensor(weight), expected, atol=2e-6, rtol=1e-5)


def test_without_other_ranks_nothing_is_gathered():
    rows = torch.randn(2, 3, requires_grad=True)
    assert gather_rows(rows) is rows
