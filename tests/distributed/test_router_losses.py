"""Router losses over unevenly spread tokens: the mean of the gradients is the gradient of the joined batch."""

import pytest
import torch

from model.router import router_losses
from tests.helpers.processes import run_processes

pytestmark = pytest.mark.distributed

# Of three ranks one has no token at all.
SPLITS = {2: [slice(0, 2), slice(2, 10)], 3: [slice(0, 1), slice(1, 1), slice(1, 10)]}


def gradients(part, *, across_ranks):
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(2))
    weight = torch.eye(4, requires_grad=True)
    losses = torch.stack(router_losses(logits[part] @ weight, 2, across_ranks=across_ranks))
    losses.sum().backward()
    return losses.detach(), weight.grad


def on_rank(info):
    part = SPLITS[info.world_size][info.rank]
    return [t.tolist() for t in gradients(part, across_ranks=True)]


@pytest.mark.parametrize("processes", [2, 3])
def test_the_mean_over_ranks_is_the_joined_batch(processes):
    ranks = run_processes(on_rank, processes)
    for place, expected in enumerate(gradients(slice(0, 10), across_ranks=False)):
        mean = torch.stack([torch.tensor(rank[place]) for rank in ranks]).mean(0)
        torch.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-5)
