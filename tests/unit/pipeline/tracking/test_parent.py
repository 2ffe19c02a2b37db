import json
import threading
import time

import mlflow

from pipeline.tracking.database import make_database
from pipeline.tracking.parent import FILE, parent_of
from pipeline.tracking.spool import SenderState
from pipeline.tracking.store import Store


def test_a_folder_has_one_whoever_asks(tmp_path):
    root, found = tmp_path / "new" / "folder", []
    ready = threading.Barrier(8)

    def ask():
        ready.wait()
        found.append(parent_of(root))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(parent == found[0] for parent in found)
    assert found[0]["name"] == "folder" and [path.name for path in root.iterdir()] == [FILE]
    assert parent_of(tmp_path / "other")["key"] != found[0]["key"]


def test_runs_that_begin_at_once_make_one(tmp_path, monkeypatch):
    """Each would find none, were it not for the others that it waits for."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    make_database(uri)
    client, parent = mlflow.MlflowClient(uri), parent_of(tmp_path)
    client.create_experiment("e")
    stores = [Store(uri, tmp_path, SenderState()) for _ in range(3)]
    for store in stores:
        make = store._client.create_run

        def late(*arguments, make=make, **options):
            time.sleep(0.3)
            return make(*arguments, **options)

        monkeypatch.setattr(store._client, "create_run", late)

    def begin(number):
        run = {"kind": "run", "key": f"{number}", "name": f"{number}", "experiment": "e"}
        stores[number].apply(run | {"artifacts": None, "tags": {}, "t": 0, "parent": parent})

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = [client.get_run(store.state.run_id) for store in stores]
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1
    above = client.get_run(runs[0].data.tags["mlflow.parentRunId"])
    assert above.info.status == "FINISHED" and above.info.run_name == tmp_path.name


def test_a_folder_that_was_moved_since_still_gets_its_runs(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    make_database(uri)
    parent = parent_of(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    assert json.loads((tmp_path / "after" / FILE).read_text())["key"] == parent["key"]
    store = Store(uri, tmp_path, SenderState())
    run = {"kind": "run", "key": "k", "name": "n", "experiment": "e", "artifacts": None, "t": 0}
    store.apply(run | {"tags": {}, "parent": parent})
    assert store.state.run_id
