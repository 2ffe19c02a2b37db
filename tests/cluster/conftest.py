"""A SLURM of two nodes on this host, for the session."""

import os

import pytest

from tests.helpers.cluster import running_cluster, why_not
from tests.helpers.dataset import write_scenes
from tests.helpers.tiny import write_towers


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The running cluster; without root or SLURM a skip, and under CI=true a failure."""
    if reason := why_not():
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(reason)
    with running_cluster(tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An experiment with towers and datasets; runs in it need names of their own."""
    folder = tmp_path_factory.mktemp("experiment")
    write_towers(folder)
    for name in ("laion", "cc12m"):
        write_scenes(folder / "data" / name, 40)
    write_scenes(folder / "data" / "held_out", 24, held_out=True)
    return folder
