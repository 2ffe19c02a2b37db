import pytest

from data_prep.errors import ConfigError
from pipeline.config import load_config
from pipeline.train import train


class BegunError(Exception):
    """The process group was about to be joined."""


def test_a_wrong_tracking_uri_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    """Neither data nor towers of this run exist; only the first rank asks."""

    def begin(*_):
        raise BegunError

    monkeypatch.setattr("pipeline.train.start_group", begin)
    monkeypatch.setenv("WORLD_SIZE", "2")
    uri = "http://no-such-host.invalid:5000"
    config = load_config("demo", [f"root={tmp_path}", f"tracking.uri={uri}"])
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="(?s)tracking.uri.*names a host that is known here"):
        train(config)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(BegunError):
        train(config)
