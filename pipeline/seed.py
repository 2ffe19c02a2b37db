"""Noise of a step: dropout, jitter of routers, whatever a model draws."""

import random

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed a step, the same however often the run was stopped and started again.

    So the state of no generator need be kept. Python's, numpy's, and torch's on every device.
    """
    number = hash((seed, step, rank)) % 2**63
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)
