import json

import pytest

from data_prep.errors import ConfigError, DataBudgetError, Problem
from data_prep.schema import load_manifest
from pipeline.cli import main as cli
from pipeline.cli.options import show_summary
from pipeline.errors import CannotGoOnError
from pipeline.healing.journal import append_lines
from tests.helpers.command import exit_code
from tests.helpers.dataset import write_scenes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError([Problem("a.b", 1, "is 2", "set 2")]), 2),
        (DataBudgetError("too many"), 3),
        (CannotGoOnError("lower optim.lr"), 4),
    ],
)
def test_errors_become_exit_codes_and_messages(monkeypatch, capsys, error, code):
    def fail():
        raise error

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code
    assert f"roseate: {error}" in capsys.readouterr().err


def test_other_ranks_only_say_that_they_stopped(monkeypatch, capsys):
    def fail():
        raise ConfigError([Problem("a.b", 1, "is 2", "set 2")])

    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "roseate: rank 3: a.b is refused\n"


def test_json_holds_what_is_printed(tmp_path, capsys):
    path = tmp_path / "new" / "summary.json"
    show_summary({"loss": 1.5}, path)
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text()) == {"loss": 1.5}


def test_index_makes_a_dataset_folder_and_tells_what_is_in_it(tmp_path, monkeypatch, capsys):
    write_scenes(tmp_path / "scenes", 7, shard_rows=4)
    output, summary = tmp_path / "index", tmp_path / "summary.json"
    arguments = ("--output", output, "--workers", 1, "--json", summary)
    assert exit_code(monkeypatch, "index", tmp_path / "scenes" / "shards", *arguments) == 0
    out, err = capsys.readouterr()
    manifest = load_manifest(output, "k")
    assert json.loads(out) == json.loads(summary.read_text())
    assert json.loads(out) == {
        "folder": str(output),
        "shards": 2,
        "samples": 7,
        "statuses": {"ok": 7},
        "fingerprint": manifest.fingerprint,
    }
    assert err == "index: tar 2/2, 7 samples, 100.0% ok\n"
    assert (
        exit_code(monkeypatch, "index", tmp_path / "scenes" / "shards", *arguments, "--again") == 0
    )
    assert load_manifest(output, "k") == manifest


def test_index_refuses_a_folder_without_tars(tmp_path, monkeypatch, capsys):
    assert exit_code(monkeypatch, "index", tmp_path) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("roseate: 1 problem in the configuration\n  TARS = ")
    assert "holds .tar files in WebDataset form" in err and "correct the path" in err


def test_quarantine_lists_suspects_of_a_run(tmp_path, monkeypatch, capsys):
    rows = [{"step": 3, "position": p, "key": f"laion/{p}", "reason": "loss"} for p in (7, 8)]
    append_lines(tmp_path / "flamingo" / "quarantine" / "rank_00000.jsonl", rows)
    assert (
        exit_code(monkeypatch, "data", "quarantine", "demo", f"root={tmp_path}", "--most", 1) == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["samples"] == 2 and shown["steps"] == 1
    assert [s["key"] for s in shown["suspects"]] == ["laion/7"]
