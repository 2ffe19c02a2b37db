import json

import pytest

from data_prep.errors import ConfigError, DataBudgetError, Problem
from pipeline import cli


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError([Problem("a.b", 1, "is 2", "set 2")]), 2), (DataBudgetError("too many"), 3)],
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
    cli._show({"loss": 1.5}, path)
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text()) == {"loss": 1.5}
