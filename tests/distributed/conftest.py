import pytest

from tests.helpers.dataset import write_scenes
from tests.helpers.tiny import write_towers


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """An experiment folder with towers and datasets; runs in it need names of their own."""
    root = tmp_path_factory.mktemp("tiny")
    write_towers(root)
    write_scenes(root / "data" / "laion", 60, shard_rows=25)
    write_scenes(root / "data" / "cc12m", 40, shard_rows=25)
    write_scenes(root / "data" / "held_out", 24, held_out=True)
    return root
