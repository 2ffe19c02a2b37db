from pipeline.launch import run_group


def test_exit_code_of_the_group_is_that_of_the_first_failure(capfd, monkeypatch):
    monkeypatch.setattr("pipeline.launch.SECONDS_TO_TELL", 120.0)
    assert run_group(["config", "show", "demo"], 2) == 0
    assert run_group(["config", "check", "nope"], 2) == 2
    told = capfd.readouterr().err
    assert "is the name of a preset" in told
    assert told.count("rule:") == 1, "the first rank alone tells it whole"
