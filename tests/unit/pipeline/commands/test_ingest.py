"""The ingest command with a real MLflow store, and its figures."""

import json
from collections import Counter

import mlflow
import pytest

from data_prep.errors import ConfigError, IngestError
from data_prep.ingest.progress import Figures
from pipeline.commands import ingest as ingest_command
from pipeline.config import load_ingest_config
from tests.helpers.command import exit_code
from tests.helpers.waiting import PATIENCE

ROWS = 6


@pytest.fixture
def config(tmp_path):
    """Rows of which none may be fetched, so that no web is needed."""
    (tmp_path / "t.tsv").write_text("".join(f"http://127.0.0.1:9/{i}\ta\n" for i in range(ROWS)))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
root: "{tmp_path}"
ingest:
  output: "{{root}}/data"
  shard_rows: 3
  sources: {{t: {{table: "{{root}}/t.tsv", layout: cc12m}}}}
  download: {{robots: ignore, contact: ops@example.org}}
  ray: {{num_workers: 1}}
tracking: {{experiment: ingests, wait_seconds: {PATIENCE}}}
"""
    )
    return path


def runs(tmp_path):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("ingests")
    found = client.search_runs([experiment.experiment_id])
    # Without the one that all of the experiment folder stand under.
    return client, [run for run in found if "mlflow.parentRunId" in run.data.tags]


def test_figures_and_report_are_in_one_run_also_when_it_goes_on(config, tmp_path, capfd):
    first = ingest_command.ingest(load_ingest_config(str(config)))
    statuses = {"refused_private_address": ROWS}
    assert first["sources"]["t"]["statuses"] == statuses
    client, (run,) = runs(tmp_path)
    assert run.info.run_id == first["mlflow_run_id"]
    assert (run.info.run_name, run.info.status) == ("ingest", "FINISHED")
    assert run.data.params["ingest.shard_rows"] == "3"
    assert run.data.metrics["ingest/rows"] == ROWS
    assert run.data.metrics["ingest/status/refused_private_address"] == ROWS
    assert run.data.metrics["ingest/ok_share"] == 0.0
    points = client.get_metric_history(run.info.run_id, "ingest/rows")
    assert points[-1].step == ROWS, "the axis is rows, which an ingest that goes on counts on"
    assert [f.path for f in client.list_artifacts(run.info.run_id, "ingest/t")] == [
        "ingest/t/report.html"
    ]
    (made,) = run.inputs.dataset_inputs
    digest = first["sources"]["t"]["fingerprint"][:16]
    assert (made.dataset.name, made.dataset.digest) == ("t", digest)
    assert [tag.value for tag in made.tags] == ["ingested"]

    (tmp_path / "data/t/ledger/000001.parquet").unlink()
    again = ingest_command.ingest(load_ingest_config(str(config)))
    assert again["mlflow_run_id"] == first["mlflow_run_id"]
    assert len(runs(tmp_path)[1]) == 1
    assert "nobody whose server" not in capfd.readouterr().err


def figures(ok):
    return Figures(10, Counter(ok=ok), ok, 1.0, 1.0, 1.0)


def test_an_ingest_that_fails_leaves_a_failed_run(config, tmp_path, monkeypatch):
    def fail(*_, on_figures, **__):
        on_figures(figures(1))
        raise IngestError("everything fails")

    monkeypatch.setattr(ingest_command, "run_ingest", fail)
    with pytest.raises(IngestError):
        ingest_command.ingest(load_ingest_config(str(config)))
    # A slow machine is not waited for as long as after an ingest that ends well.
    (place,) = (tmp_path / "ingest").iterdir()
    assert exit_code(monkeypatch, "tracking", "send", place) == 0
    (run,) = runs(tmp_path)[1]
    assert run.info.status == "FAILED" and run.data.metrics["ingest/rows"] == 1


def test_a_tracking_server_that_is_away_costs_the_figures_alone(config, monkeypatch, capsys):
    overrides = ["tracking.uri=http://127.0.0.1:9", "tracking.wait_seconds=0.5"]

    def work(*_, on_figures, **__):
        for ok in range(5):
            on_figures(figures(ok))
        return {"sources": {}}

    monkeypatch.setattr(ingest_command, "run_ingest", work)
    summary = ingest_command.ingest(load_ingest_config(str(config), overrides))
    assert summary["mlflow_run_id"] is None
    told = capsys.readouterr().err
    assert "MLflow at http://127.0.0.1:9 does not answer" in told
    assert "records for MLflow are not sent yet" in told and "roseate tracking send" in told


def test_a_run_that_the_server_does_not_know_is_begun_anew(config, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tracking.json").write_text(json.dumps({"run_id": "0" * 32}))

    def work(*_, on_figures, **__):
        on_figures(figures(3))
        return {"sources": {}}

    monkeypatch.setattr(ingest_command, "run_ingest", work)
    summary = ingest_command.ingest(load_ingest_config(str(config)))
    (run,) = runs(tmp_path)[1]
    assert run.info.run_id == summary["mlflow_run_id"] != "0" * 32


def test_without_a_contact_it_says_what_is_missing(config, monkeypatch, capsys):
    monkeypatch.setattr(ingest_command, "run_ingest", lambda *_, **__: {"sources": {}})
    overrides = ["ingest.download.contact=null", "tracking.uri=''"]
    ingest_command.ingest(load_ingest_config(str(config), overrides))
    assert "set ingest.download.contact to an address or a page" in capsys.readouterr().err


def test_status_is_a_command_with_an_exit_code_of_its_own(config, tmp_path, monkeypatch, capfd):
    assert exit_code(monkeypatch, "ingest", config, "tracking.uri=''") == 0
    told = tmp_path / "status.json"
    assert exit_code(monkeypatch, "ingest", "status", tmp_path / "data", "--json", told) == 0
    assert f"every row has one status, {ROWS} of {ROWS}" in capfd.readouterr().out
    (row,) = json.loads(told.read_text())
    assert row["adds_up"] and row["statuses"] == {"refused_private_address": ROWS}

    (tmp_path / "data/t/ledger/000001.parquet").unlink()
    assert exit_code(monkeypatch, "ingest", "status", tmp_path / "data") == 1
    assert "3 of 6 rows have a status" in capfd.readouterr().out
    assert exit_code(monkeypatch, "ingest", "status", tmp_path / "nowhere") == 2


def test_what_the_engine_lacks_is_refused_beforehand(config, monkeypatch, capsys):
    override = "ingest.download.engine=img2dataset"
    assert exit_code(monkeypatch, "config", "check", config, override) == 2
    told = capsys.readouterr().err
    assert "ingest.download.per_host = 16" in told
    with pytest.raises(ConfigError, match="per_host"):
        ingest_command.ingest(load_ingest_config(str(config), [override]))


def test_config_check_and_show_take_a_file_with_an_ingest_alone(config, monkeypatch, capsys):
    assert exit_code(monkeypatch, "config", "check", config) == 0
    assert capsys.readouterr().out == f"{config}: can ingest\n"
    assert exit_code(monkeypatch, "config", "show", config) == 0
    assert "shard_rows: 3" in capsys.readouterr().out
