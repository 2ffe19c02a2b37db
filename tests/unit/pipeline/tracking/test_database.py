import sqlite3
import subprocess
import sys

import mlflow
import pytest

from pipeline.tracking.database import make_database
from pipeline.tracking.open import open_tracker
from pipeline.tracking.spool import SenderState
from pipeline.tracking.store import Store
from tests.helpers.tiny import tiny_config
from tests.helpers.waiting import PATIENT, eventually


def test_several_that_begin_with_a_new_database_at_once_all_get_their_runs(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    names = ["one", "two", "three"]
    configs = [tiny_config(tmp_path, PATIENT, f"tracking.uri={uri}", f"name={n}") for n in names]
    trackers = [open_tracker(config, is_main=True) for config in configs]
    for tracker, name in zip(trackers, names, strict=True):
        tracker.begin(name, start_seconds=0.0)
    for tracker in trackers:
        tracker.end()
    client = mlflow.MlflowClient(uri)
    assert [client.get_run(t.run_id).info.run_name for t in trackers] == names
    assert not list(tmp_path.glob(".mlflow.db*"))


def test_one_that_is_killed_while_it_makes_a_database_leaves_none(tmp_path):
    path = tmp_path / "mlflow.db"
    code = "import sys\nfrom pipeline.tracking.database import make_database\nmake_database(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, f"sqlite:///{path}"])
    eventually(lambda: any(tmp_path.glob(".mlflow.db.*")))
    process.kill()
    process.wait()
    assert not path.exists()
    make_database(f"sqlite:///{path}")
    assert mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()


def test_a_database_that_is_there_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("CREATE TABLE kept (id INTEGER)")
    before = (tmp_path / "a.db").read_bytes()
    make_database(f"sqlite:///{tmp_path}/a.db")
    assert (tmp_path / "a.db").read_bytes() == before


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "http://host", "databricks"])
def test_what_is_no_file_is_left_alone(tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    make_database(uri)
    assert not list(tmp_path.iterdir())


def test_an_experiment_that_another_run_has_made_just_now_is_taken(tmp_path, monkeypatch):
    """Both have looked for it before one of them makes it."""
    config = tiny_config(tmp_path, PATIENT)
    uri, title = config.tracking.uri, config.tracking.experiment
    make_database(uri)
    client = mlflow.MlflowClient(uri)
    store = Store(uri, tmp_path, SenderState())
    look = store._client.get_experiment_by_name

    def late(name):
        found = look(name)
        if found is None:
            client.create_experiment(name)
        return found

    monkeypatch.setattr(store._client, "get_experiment_by_name", late)
    run = {"kind": "run", "key": "k", "name": "n", "experiment": title, "artifacts": None}
    store.apply(run | {"tags": {}, "t": 0})
    assert client.get_run(store.state.run_id).info.run_name == "n"
