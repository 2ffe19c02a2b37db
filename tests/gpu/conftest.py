"""What runs on a GPU, and the same on a CPU, so that `make test` tries the tests themselves."""

import os
import random

import pytest
import torch

# Before CUDA begins: cuBLAS sums in one order then.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def seed():
    """Another one each time, set already; a test that fails shows it."""
    value = random.SystemRandom().randrange(2**31)
    print(f"seed {value}")
    torch.manual_seed(value)
    return value


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """``cpu`` or ``cuda``; without a GPU the latter is skipped."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return request.param
