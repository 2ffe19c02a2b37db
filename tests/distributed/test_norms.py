"""The norm of all gradients at once is DeepSpeed's, on every ZeRO stage and any number of ranks."""

import math

import pytest
import torch
from torch import nn

from pipeline.engine.norms import join_norms
from tests.helpers.processes import run_processes

pytestmark = pytest.mark.distributed


def norms(info, stage, dtype):
    """Of three steps: DeepSpeed's own, and ours."""
    import deepspeed

    found = []
    for joined in (False, True):
        torch.manual_seed(0)
        # Sizes that no number of ranks divides, so that parts are padded.
        module = nn.Sequential(nn.Linear(33, 70), nn.GELU(), nn.LayerNorm(70), nn.Linear(70, 5))
        optimizer = torch.optim.SGD(
            [{"params": list(module[:2].parameters())}, {"params": list(module[2:].parameters())}],
            lr=0.01,
        )
        settings = {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_clipping": 0.1,
            "bf16": {"enabled": dtype == "bf16"},
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 2000},
            "zero_allow_untested_optimizer": True,
        }
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        if joined:
            join_norms(engine)
        generator = torch.Generator().manual_seed(info.rank)
        told = []
        for _ in range(3):
            x = torch.randn(4, 33, generator=generator).to(next(module.parameters()).dtype)
            engine.backward(engine(x).float().pow(2).sum())
            engine.step()
            told.append(float(engine.get_global_grad_norm()))
        found.append(told)
    return found


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_joined_norms_are_those_of_one_after_another(processes, stage, dtype):
    for own, joined in run_processes(norms, processes, stage, dtype):
        assert all(norm > 0.1 and math.isfinite(norm) for norm in own)
        assert joined == pytest.approx(own, rel=1e-6)
