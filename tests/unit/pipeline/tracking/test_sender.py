"""A real server that is slow, cut, failing, killed and back again: nothing lost, all once, in order."""

import json
import signal
import time

import mlflow
import pytest

from pipeline.tracking.sender import send_all
from pipeline.tracking.sender_process import SenderProcess
from pipeline.tracking.spool import SenderState, Spool, unsent
from tests.helpers.mlflow_server import Line, MlflowServer
from tests.helpers.tiny import tiny_config
from tests.helpers.tracked import begin_run
from tests.helpers.waiting import PATIENCE, PATIENT, eventually


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A server that is busy is not one that is away; what is sent here repeats no more than a sender does."""
    monkeypatch.setattr("pipeline.tracking.server.SECONDS", PATIENCE)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with MlflowServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def line(server):
    line = Line(server.port)
    yield line
    line.close()


def start(tmp_path, uri, *overrides, **options):
    config = tiny_config(tmp_path, f"tracking.uri={uri}", PATIENT, *overrides)
    return begin_run(config, **options)


def points(server, run_id, key="loss"):
    found = mlflow.MlflowClient(server.uri).get_metric_history(run_id, key)
    return [(p.step, p.value) for p in sorted(found, key=lambda p: (p.timestamp, p.step))]


def has(server, run_id, expected):
    return lambda: len(points(server, run_id)) >= expected


def test_whatever_befalls_the_line_all_arrives_in_order_once(server, line, tmp_path):
    folder = tmp_path / "flamingo" / "tracking"

    def error():
        return SenderState.load(folder).error or ""

    # Until it has befallen the sender, too.
    befallen = {"open": lambda: unsent(folder) == 0, "refuse": error, "cut": error}
    befallen["fail"] = lambda: "503" in error()
    tracker = start(tmp_path, line.uri)
    for number, mode in enumerate(["open", "refuse", "open", "cut", "fail", "open"]):
        line.mode = mode
        for step in range(10 * number + 1, 10 * number + 11):
            tracker.metrics({"loss": 100.0 - step, "lr": 1.0}, step)
        (tmp_path / f"{mode}.txt").write_text(str(number))
        tracker.file(tmp_path / f"{mode}.txt")
        eventually(befallen[mode])
    tracker.end()
    assert points(server, tracker.run_id) == [(s, 100.0 - s) for s in range(1, 61)]
    client = mlflow.MlflowClient(server.uri)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    names = {f.path for f in client.list_artifacts(tracker.run_id)}
    assert names == {"open.txt", "refuse.txt", "cut.txt", "fail.txt"}


def test_a_slow_server_keeps_nobody_waiting(server, line, tmp_path):
    tracker = start(tmp_path, line.uri)
    line.delay = 10.0
    slowest = 0.0
    for step in range(1, 2001):
        began = time.perf_counter()
        tracker.metrics({"loss": 1.0 / step, **{f"c{i}": 1.0 for i in range(50)}}, step)
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < line.delay / 2
    assert unsent(tmp_path / "flamingo" / "tracking") > 1000
    line.delay = 0.0
    tracker.end()
    assert points(server, tracker.run_id) == [(s, 1.0 / s) for s in range(1, 2001)]


def test_a_server_that_is_killed_and_comes_back(tmp_path):
    with MlflowServer(tmp_path / "server") as server:
        tracker = start(tmp_path, server.uri)
        tracker.metrics({"loss": 1.0}, 1)
        eventually(has(server, tracker.run_id, 1))
        server.kill()
        for step in range(2, 50):
            tracker.metrics({"loss": float(step)}, step)
        eventually(lambda: SenderState.load(tmp_path / "flamingo" / "tracking").error)
        server.start()
        tracker.end()
        assert points(server, tracker.run_id) == [(s, float(s)) for s in range(1, 50)]


def test_a_run_that_begins_without_its_server_gets_its_id_later(server, line, tmp_path, capsys):
    line.mode = "refuse"
    tracker = start(tmp_path, line.uri)
    assert tracker.run_id is None
    told = capsys.readouterr().err
    assert "does not answer" in told and "keeps what it has to tell" in told
    tracker.metrics({"loss": 1.0}, 1)
    line.mode = "open"
    eventually(lambda: tracker.run_id is not None)
    tracker.end()
    assert points(server, tracker.run_id) == [(1, 1.0)]


def test_what_is_left_at_the_end_is_told_and_sent_later(server, line, tmp_path, capsys):
    tracker = start(tmp_path, line.uri, "tracking.wait_seconds=0.5")
    run_id, folder = tracker.run_id, tmp_path / "flamingo" / "tracking"
    eventually(lambda: unsent(folder) == 0)
    line.mode = "refuse"
    tracker.metrics({"loss": 1.0}, 1)
    tracker.end()
    told = capsys.readouterr().err
    assert "2 records for MLflow are not sent yet" in told
    assert f"roseate tracking send {tmp_path}/flamingo" in told
    line.mode = "open"
    assert send_all(folder, line.uri, PATIENCE)
    assert points(server, run_id) == [(1, 1.0)]
    assert mlflow.MlflowClient(server.uri).get_run(run_id).info.status == "FINISHED"


def test_a_sender_killed_anywhere_sends_nothing_twice(server, line, tmp_path):
    tracker = start(tmp_path, line.uri)
    run_id, before = tracker.run_id, line.requests
    line.delay = 0.5  # it is killed within a request, which arrives
    for start_step in range(1, 400, 40):
        for step in range(start_step, start_step + 40):
            tracker.metrics({"loss": float(step)}, step)
        (tmp_path / "a.txt").write_text(str(start_step))
        tracker.file(tmp_path / "a.txt")
    eventually(lambda: line.requests > before)
    tracker.sender.process.kill()
    tracker.sender.process.wait()
    folder = tmp_path / "flamingo" / "tracking"
    tracker.end()
    for requests in (1, 2, 4):
        before = line.requests
        sender = SenderProcess(folder, line.uri, PATIENCE)
        sender.begin()
        eventually(lambda n=before + requests: line.requests >= n)
        sender.process.kill()
        sender.process.wait()
    assert unsent(folder) > 0, "killed before it had sent all"
    assert send_all(folder, server.uri, PATIENCE)
    assert points(server, run_id) == [(s, float(s)) for s in range(1, 401)]
    assert not list((folder / "files").iterdir())


def test_what_the_store_will_never_take_is_put_aside_and_the_rest_goes_on(server, tmp_path):
    tracker = start(tmp_path, server.uri)
    tracker.metrics({"loss": 1.0, "not * allowed?": 2.0}, 1)
    tracker.metrics({"loss": 2.0}, 2)
    tracker.end()
    assert points(server, tracker.run_id) == [(1, 1.0), (2, 2.0)]
    folder = tmp_path / "flamingo" / "tracking"
    (row,) = map(json.loads, (folder / "rejected.jsonl").read_text().splitlines())
    assert row["values"] == {"not * allowed?": 2.0} and "error" in row
    assert json.loads((folder / "state.json").read_text())["rejected"] == 1


def test_what_is_put_aside_is_told_at_the_end(server, tmp_path, capsys):
    tracker = start(tmp_path, server.uri)
    tracker.metrics({"not * allowed?": 2.0}, 1)
    tracker.end()
    rejected = tmp_path / "flamingo" / "tracking" / "rejected.jsonl"
    assert f"1 records were refused by MLflow: {rejected}" in capsys.readouterr().err


def test_a_record_that_always_fails_is_given_up_while_the_store_is_well(
    server, tmp_path, monkeypatch
):
    """A version of a checkpoint that was never told, and a file that is no file, each tried again first."""
    monkeypatch.setattr("pipeline.tracking.sender.GIVE_UP_SECONDS", 0.5)
    tracker = start(tmp_path, server.uri)
    tracker.end()
    folder = tmp_path / "flamingo" / "tracking"
    spool = Spool(folder)
    spool.append("register", key="none", url="/none", name="none", alias="newest")
    spool.append_file("file", b"x", name="no/such/place", folder=None)
    spool.append("metrics", step=1, values={"loss": 1.0})
    assert send_all(folder, server.uri, PATIENCE)
    assert points(server, tracker.run_id) == [(1, 1.0)]
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in rejected] == ["register", "file"]
    assert unsent(folder) == 0, "what is put aside is not to be sent"
    assert (folder / "files" / rejected[1]["kept"]).read_bytes() == b"x"


def test_a_server_that_is_away_for_long_is_not_a_reason_to_give_up(
    server, line, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.tracking.sender.GIVE_UP_SECONDS", 0.5)
    tracker = start(tmp_path, server.uri)
    tracker.end()
    folder = tmp_path / "flamingo" / "tracking"
    Spool(folder).append("metrics", step=1, values={"loss": 1.0})
    for mode in ("refuse", "fail", "cut"):
        line.mode = mode
        assert not send_all(folder, line.uri, 4.0)
    assert SenderState.load(folder).rejected == 0 and unsent(folder) == 1
    line.mode = "open"
    assert send_all(folder, line.uri, PATIENCE)
    assert points(server, tracker.run_id) == [(1, 1.0)]


def test_a_run_that_the_store_has_lost_is_told_to_a_new_one(server, tmp_path):
    client = mlflow.MlflowClient(server.uri)
    tracker = start(tmp_path, server.uri)
    tracker.metrics({"loss": 1.0}, 1)
    eventually(has(server, tracker.run_id, 1))
    client.delete_run(tracker.run_id)
    tracker.metrics({"loss": 2.0}, 2)
    tracker.end()
    now = SenderState.load(tmp_path / "flamingo" / "tracking").run_id
    assert now != tracker.run_id and points(server, now) == [(1, 1.0), (2, 2.0)]
    run = client.get_run(now)
    assert run.info.status == "FINISHED" and run.data.params["optim.lr"]


def test_another_database_gets_the_whole_run(tmp_path):
    with MlflowServer(tmp_path / "server") as server:
        tracker = start(tmp_path, server.uri)
        tracker.metrics({"loss": 1.0}, 1)
        eventually(has(server, tracker.run_id, 1))
        server.kill()
        for path in (tmp_path / "server").glob("mlflow.db*"):
            path.unlink()
        tracker.metrics({"loss": 2.0}, 2)
        server.start()
        tracker.end()
        now = SenderState.load(tmp_path / "flamingo" / "tracking").run_id
        assert points(server, now) == [(1, 1.0), (2, 2.0)]


def test_figures_of_other_nodes_go_to_the_same_run(server, tmp_path):
    tracker = start(tmp_path, server.uri)
    node = Spool(tmp_path / "flamingo" / "tracking", "node_3.jsonl")
    for step in (1, 2):
        values = {"system/node_3/cpu_utilization_percentage": 50.0 + step}
        node.append("metrics", step=step, values=values)
    tracker.end()
    found = points(server, tracker.run_id, "system/node_3/cpu_utilization_percentage")
    assert found == [(1, 51.0), (2, 52.0)]


def test_two_runs_of_one_spool_are_two_runs(server, tmp_path):
    ids = []
    for number in (1, 2):
        tracker = start(tmp_path, server.uri)
        tracker.metrics({"loss": float(number)}, 1)
        tracker.end()
        ids.append(tracker.run_id)
    assert [points(server, run_id) for run_id in ids] == [[(1, 1.0)], [(1, 2.0)]]


def test_the_batch_systems_signals_do_not_end_the_sender(server, tmp_path):
    tracker = start(tmp_path, server.uri)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        tracker.sender.process.send_signal(number)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.end()
    assert points(server, tracker.run_id) == [(1, 1.0)]


def test_signals_reach_this_process_as_before(server, tmp_path):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    start(tmp_path, server.uri).end()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == blocked
