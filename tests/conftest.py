"""Fixtures that tests of several folders share."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.command import forked
from tests.helpers.dataset import write_scenes
from tests.helpers.tiny import OVERRIDES, write_towers

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Where files run side by side, those that share the one SLURM of the session do not."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "tests/cluster" if file.startswith("tests/cluster/") else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """An experiment folder with towers and datasets; runs in it need names of their own."""
    root = tmp_path_factory.mktemp("tiny")
    write_towers_and_scenes(root)
    return root


@pytest.fixture(scope="session")
def trained_root(tmp_path_factory):
    """An experiment folder with tiny towers, datasets, and the run `flamingo` trained for 6 steps.

    Its MLflow run is in {root}/mlflow.db. Read only: a test that changes anything copies it.
    """
    root = tmp_path_factory.mktemp("trained")
    write_towers_and_scenes(root)
    overrides = [f"root={root}", *OVERRIDES, "engine.expert_parallel=1"]
    forked("train", "demo", *overrides)
    return root


def write_towers_and_scenes(root: Path) -> None:
    """Tiny towers and three small datasets."""
    write_towers(root)
    write_scenes(root / "data" / "laion", 60, shard_rows=25)
    write_scenes(root / "data" / "cc12m", 40, shard_rows=25)
    write_scenes(root / "data" / "held_out", 24, held_out=True)
