import pytest

from data_prep.errors import ConfigError
from pipeline.evaluation.layouts.json_file import load_json


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "holds JSON; seen: an empty file"),
        (b"\x1f\x8b\x08rest", "holds JSON; seen: a gzip file"),
        (b"<html>", "holds JSON; seen: a page or XML"),
        (b'{"images": [', "holds JSON; seen: Expecting value"),
        (b"[" * 100_000, "holds JSON; seen: "),
        (b"\xff\xfe\xfa", "holds JSON; seen: "),
        (b"[1, 2]", "holds a JSON object; seen: a list of 2"),
        (b'"text"', "holds a JSON object; seen: only 'text'"),
    ],
)
def test_what_is_no_object_is_said_to_be_what_it_is(tmp_path, data, rule):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_json(str(path), "evaluation.data.annotations")
    (problem,) = caught.value.problems
    assert problem.rule.startswith(rule) and problem.key == "evaluation.data.annotations"


def test_folders_and_names_without_a_folder(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="is a file that can be read"):
        load_json(str(tmp_path), "key")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    assert load_json("a.json", "key") == {}
