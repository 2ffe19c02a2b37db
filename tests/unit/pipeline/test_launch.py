import socket

from pipeline.launch import free_port, run_group


def test_free_port_can_be_bound():
    with socket.socket() as s:
        s.bind(("127.0.0.1", free_port()))


def test_exit_code_of_the_group_is_that_of_the_first_failure(capfd):
    assert run_group(["config", "show", "demo"], 2) == 0
    assert run_group(["config", "check", "nope"], 2) == 2
    told = capfd.readouterr().err
    assert "is the name of a preset" in told
    assert told.count("rule:") == 1, "the first rank alone tells it whole"
