import secrets

import pytest

from data_prep.config import IngestConfig
from data_prep.examples.tables import build_scene_web
from data_prep.examples.web import SceneWeb


@pytest.fixture(scope="session")
def scene_web(tmp_path_factory):
    """A running web of 360 training and 20 held-out scenes; .expected has the status counts."""
    folder = tmp_path_factory.mktemp("web")
    web = SceneWeb(folder)
    seed = secrets.randbelow(1000)
    web.expected = build_scene_web(
        folder, scenes=360, held_out=20, seed=seed, base_url=web.base_url
    )
    with web:
        yield web


@pytest.fixture
def ingest_config(scene_web, tmp_path):
    """Both training tables and the held-out one, small shards, loopback allowed."""
    return IngestConfig(
        output=str(tmp_path / "data"),
        shard_rows=100,
        image={"size": 64},
        download={"allow_private_hosts": ["127.0.0.1"]},
        ray={"num_workers": 2},
        sources={
            "laion": {"table": str(scene_web.folder / "laion.parquet")},
            "cc12m": {"table": str(scene_web.folder / "cc12m.tsv")},
            "held_out": {"table": str(scene_web.folder / "held_out.parquet")},
        },
    )
