import json

import mlflow

from pipeline.tracking.sender import lock
from pipeline.tracking.spool import SenderState, Spool, unsent
from tests.helpers.command import exit_code
from tests.helpers.tiny import tiny_config
from tests.helpers.tracked import begin_run
from tests.helpers.waiting import PATIENT


def command(monkeypatch, *arguments):
    return exit_code(monkeypatch, "tracking", *arguments)


def test_status_and_send_of_a_run_with_something_left(tmp_path, monkeypatch, capsys):
    config = tiny_config(tmp_path, PATIENT)
    tracker = begin_run(config)
    tracker.end()
    folder = tmp_path / "flamingo" / "tracking"
    Spool(folder).append("metrics", step=7, values={"late": 1.0})
    told = tmp_path / "told.json"
    assert command(monkeypatch, "status", tmp_path, "--json", told) == 0
    (row,) = json.loads(told.read_text()).values()
    assert row["mlflow_run_id"] == tracker.run_id and row["unsent"] == 1
    assert command(monkeypatch, "send", tmp_path, "--json", told) == 0
    assert list(json.loads(told.read_text()).values()) == [{"sent": 1, "unsent": 0}]
    run = mlflow.MlflowClient(config.tracking.uri).get_run(tracker.run_id)
    assert run.data.metrics["late"] == 1.0
    capsys.readouterr()


def test_what_cannot_be_sent_is_exit_code_4(tmp_path, monkeypatch, capsys):
    config = tiny_config(tmp_path, "tracking.uri=http://127.0.0.1:9", "tracking.wait_seconds=0")
    begin_run(config).end()
    capsys.readouterr()
    assert command(monkeypatch, "send", tmp_path, "--wait", "0.5") == 4
    assert "records are not sent; send them again later" in capsys.readouterr().err
    assert unsent(tmp_path / "flamingo" / "tracking") == 3
    assert "refused" in SenderState.load(tmp_path / "flamingo" / "tracking").error


def test_what_a_run_is_sending_itself_is_left_to_it(tmp_path, monkeypatch, capsys):
    tracker = begin_run(tiny_config(tmp_path, PATIENT))
    tracker.end()
    folder, told = tmp_path / "flamingo" / "tracking", tmp_path / "told.json"
    Spool(folder).append("metrics", step=7, values={"late": 1.0})
    with lock(folder):
        assert command(monkeypatch, "send", tmp_path, "--json", told) == 4
    (row,) = json.loads(told.read_text()).values()
    assert row == {"unsent": 1, "error": "a run that is under way sends it"}
    capsys.readouterr()


def test_a_uri_with_a_secret_has_to_be_told_again(tmp_path, monkeypatch, capsys):
    spool = Spool(tmp_path / "tracking")
    spool.append("run", key="k", name="n", uri="postgresql://***@db/m")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert command(monkeypatch, "send", tmp_path) == 2
    assert "the run's own holds a secret" in capsys.readouterr().err


def test_a_folder_without_a_tracked_run_is_named(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "status", tmp_path) == 2
    assert "is a folder of a run that was tracked" in capsys.readouterr().err
