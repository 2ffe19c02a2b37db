"""Losses that compare over ranks: the mean of the gradients is the gradient of the joined batch."""

import pytest
import torch

from model.contrastive_loss import PairLoss
from model.router import router_losses
from tests.helpers.processes import run_processes

pytestmark = pytest.mark.distributed

FORMS = ("info_nce", "sigmoid")
# Uneven over two and over three ranks.
VALID = torch.tensor([True, False, False, True, True, True])
SPLITS = {2: [slice(0, 2), slice(2, 10)], 3: [slice(0, 1), slice(1, 1), slice(1, 10)]}


def rows(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(6, 5, generator=generator), dim=-1)


def pair_gradients(part, *, across_ranks):
    found = {}
    for form in FORMS:
        loss = PairLoss(form)
        weight = torch.eye(5, requires_grad=True)
        value, accuracy = loss(
            rows(0)[part] @ weight, rows(1)[part], VALID[part], across_ranks=across_ranks
        )
        value.backward()
        found[form] = [value.detach(), accuracy, weight.grad, *(p.grad for p in loss.parameters())]
    return found


def router_gradients(part, *, across_ranks):
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(2))
    weight = torch.eye(4, requires_grad=True)
    losses = torch.stack(router_losses(logits[part] @ weight, 2, across_ranks=across_ranks))
    losses.sum().backward()
    return [losses.detach(), weight.grad]


def on_rank(info):
    each = 6 // info.world_size
    part = slice(info.rank * each, (info.rank + 1) * each)
    pairs = pair_gradients(part, across_ranks=True)
    router = router_gradients(SPLITS[info.world_size][info.rank], across_ranks=True)
    return {k: [t.tolist() for t in v] for k, v in {**pairs, "router": router}.items()}


@pytest.mark.parametrize("processes", [2, 3])
def test_the_mean_over_ranks_is_the_joined_batch(processes):
    """For three ranks one has no token at all."""
    ranks = run_processes(on_rank, processes)
    whole = pair_gradients(slice(0, 6), across_ranks=False)
    whole["router"] = router_gradients(slice(0, 10), across_ranks=False)
    for name, expected in whole.items():
        for place, tensor in enumerate(expected):
            mean = torch.stack([torch.tensor(r[name][place]) for r in ranks]).mean(0)
            torch.testing.assert_close(mean, tensor, atol=1e-6, rtol=1e-5, msg=f"{name} {place}")
