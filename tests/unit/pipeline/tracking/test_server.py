"""Tracking URIs that work, that do not yet, and that never will, against real servers."""

import base64
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest

from data_prep.errors import ConfigError
from pipeline.run_check import check_run
from pipeline.tracking.server import PASSWORD, USER, check_server, uri_problem
from tests.helpers.mlflow_server import Line, MlflowServer
from tests.helpers.tiny import tiny_config
from tests.helpers.tracked import begin_run
from tests.helpers.waiting import PATIENCE, PATIENT


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A server that is busy is not one that is away."""
    monkeypatch.setattr("pipeline.tracking.server.SECONDS", PATIENCE)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with basic auth."""
    folder = tmp_path_factory.mktemp("guarded")
    ini = folder / "auth.ini"
    ini.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/auth.db\n"
        "admin_username = admin\nadmin_password = correct-horse-battery\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(ini), "MLFLOW_FLASK_SERVER_SECRET_KEY": "a" * 32}
    environment["MLFLOW_AUTH_ADMIN_PASSWORD"] = "correct-horse-battery"
    with MlflowServer(folder, "--app-name", "basic-auth", environment=environment) as server:
        yield server


@pytest.fixture
def website():
    """A server that is no MLflow."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            code, body = (200, b"<html>hello</html>") if "mlflow" in self.path else (404, b"")
            code = 404 if "/none/" in self.path else code
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("htp://host:5000", "begins with one of http://"),
        ("/data/mlruns", "begins with one of http://"),
        ("file:///data/mlruns", "begins with one of http://"),
        ("http://", "names a host"),
        ("http://me:pw@host:5000", "holds no user and no password"),
    ],
)
def test_a_uri_that_cannot_be_one_is_refused_without_asking(tmp_path, uri, rule):
    found, remedy = uri_problem(uri)
    assert rule in found and remedy
    with pytest.raises(ConfigError, match=rule.split("://")[0]) as caught:
        check_run(tiny_config(tmp_path, f"tracking.uri={uri}", "engine.expert_parallel=1"), 1)
    assert "pw" not in str(caught.value)
    with pytest.raises(ConfigError):
        begin_run(tiny_config(tmp_path, f"tracking.uri={uri}"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("uri", ["sqlite:////a/b.db", "postgresql+psycopg2://u@h/db", "databricks"])
def test_other_stores_are_not_asked(uri):
    assert uri_problem(uri) is None and check_server(uri) is None


def test_a_host_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="(?s)tracking.uri.*names a host that is known here"):
        check_server("http://no-such-host.invalid:5000")


@pytest.mark.parametrize("path", ["", "/none"])
def test_a_server_that_is_no_mlflow_is_refused(website, path):
    with pytest.raises(
        ConfigError, match="(?s)is an MLflow server.*correct the host, port and path"
    ):
        check_server(website + path)


def test_a_server_that_is_down_slow_or_busy_is_a_matter_of_time(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.tracking.server.SECONDS", 0.3)
            assert "timed out" in check_server(f"http://127.0.0.1:{port}")
    assert "refused" in check_server(f"http://127.0.0.1:{port}")
    line = Line(1)
    line.mode = "fail"
    assert check_server(line.uri) == "it answers 503 Busy"
    line.close()


def test_without_a_password_the_server_refuses_and_we_say_how_to_give_one(guarded, monkeypatch):
    monkeypatch.delenv(USER, raising=False)
    with pytest.raises(ConfigError, match=f"(?s)answers 401.*export {USER} and {PASSWORD}"):
        check_server(guarded.uri)
    monkeypatch.setenv(USER, "admin")
    monkeypatch.setenv(PASSWORD, "wrong-horse")
    with pytest.raises(ConfigError, match="answers 401"):
        check_server(guarded.uri)


def test_a_run_with_basic_auth(guarded, tmp_path, monkeypatch):
    monkeypatch.setenv(USER, "admin")
    monkeypatch.setenv(PASSWORD, "correct-horse-battery")
    assert check_server(guarded.uri) is None
    tracker = begin_run(tiny_config(tmp_path, f"tracking.uri={guarded.uri}", PATIENT))
    tracker.metrics({"loss": 2.0}, 1)
    (tmp_path / "notes.txt").write_text("x")
    tracker.file(tmp_path / "notes.txt")
    assert tracker.url.startswith(f"{guarded.uri}/#/experiments/")
    tracker.end()
    client = mlflow.MlflowClient(guarded.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics == {"loss": 2.0}
    assert [f.path for f in client.list_artifacts(tracker.run_id)] == ["notes.txt"]
    secret = base64.b64encode(b"admin:correct-horse-battery")
    kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b"correct-horse" not in kept and secret not in kept
    assert os.environ[PASSWORD]


def test_a_database_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    config = tiny_config(tmp_path, f"tracking.uri=sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(ConfigError, match="(?s)tracking.uri.*takes a run"):
        begin_run(config)
