from types import SimpleNamespace

import pytest

from data_prep.plan_changes import file_problem, policy_problems
from data_prep.tables.scan import Scan

POLICY = {
    "schema_version": 2,
    "shard_rows": 10,
    "source": {"layout": "auto", "keep_columns": None},
    "image": {"size": 256, "mode": "border"},
    "download": {"robots": "obey"},
}


def test_each_setting_that_differs_is_named_as_in_the_configuration():
    now = {**POLICY, "image": {"size": 64, "mode": "border"}, "download": {"robots": "ignore"}}
    now["source"] = {"layout": "coyo", "keep_columns": None}
    problems = policy_problems(POLICY, now, "web", "/data/web")
    assert [(p.key, p.value) for p in problems] == [
        *(("ingest.download.robots", "ignore"), ("ingest.image.size", 64)),
        ("ingest.sources.web.layout", "coyo"),
    ]
    assert problems[1].rule == "must be 256, as when /data/web was begun; nothing was touched"
    assert problems[1].remedy == "set it back, or set another ingest.output"
    assert policy_problems(POLICY, POLICY, "web", "/data/web") == []


def test_a_setting_that_is_new_or_gone_differs():
    more = {**POLICY, "filter": {"max_pixels": 5}}
    for then, now, value in ((POLICY, more, 5), (more, POLICY, None)):
        (problem,) = policy_problems(then, now, "web", "f")
        assert (problem.key, problem.value) == ("ingest.filter.max_pixels", value)


def test_another_layout_of_the_folder_is_no_setting():
    (problem,) = policy_problems(POLICY, {**POLICY, "schema_version": 3}, "web", "/data/web")
    assert problem.key == "ingest.output"
    assert problem.rule == "/data/web was begun by a version of another folder layout"


@pytest.mark.parametrize(
    ("spans", "crcs", "where"),
    [
        ([5, 5], [1, 3], "rows 10 to 19 of the file"),
        ([6, 5], [1, 2], "rows 0 to 9 of the file"),
        ([5], [1], "rows 10 to 19 of the file"),
        ([5, 5, 5], [1, 2, 3], "rows 20 to 29 of the file"),
        ([5, 5], [1, 2], None),  # before the first row: a header, say
    ],
)
def test_the_first_rows_that_differ_are_named(spans, crcs, where):
    planned = SimpleNamespace(name="t.tsv", bytes=10, sha256="a" * 64, rows=20)
    planned.shard_bytes, planned.shard_crc32 = [5, 5], [1, 2]
    now = Scan("b" * 64, 2000, spans, crcs)
    problem = file_problem("k", "/t", planned, 11, now, 10)
    told = (
        "t.tsv is planned already and must not change: 20 rows and 10 bytes, sha256 aaaaaaaaaaaaaaaa... "
        "then; 2,000 rows and 11 bytes, sha256 bbbbbbbbbbbbbbbb... now"
    )
    assert problem.rule == told + (f"; the first that differ are among {where}" if where else "")
