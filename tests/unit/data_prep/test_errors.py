import pytest

from data_prep.errors import ConfigError, Problem


def test_all_problems_stand_on_one_screen():
    error = ConfigError([Problem("a.b", 3, "must be even", "add one"), Problem("c", "", "r", "d")])
    assert str(error).splitlines() == [
        "2 problems in the configuration",
        "  a.b = 3",
        "    rule: must be even",
        "    do:   add one",
        "  c = ''",
        "    rule: r",
        "    do:   d",
    ]


def test_an_error_without_problem_is_refused():
    with pytest.raises(ValueError, match="at least one problem"):
        ConfigError([])
