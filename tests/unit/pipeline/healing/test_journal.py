import os
import subprocess
import sys

from pipeline.healing.journal import append_lines, read_lines


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


def test_lines_come_back_in_their_order(tmp_path):
    path = tmp_path / "folder" / "j.jsonl"
    append_lines(path, [{"a": 1}, {"a": 2}])
    append_lines(path, [{"a": 0.1}])
    assert read_lines(path) == [{"a": 1}, {"a": 2}, {"a": 0.1}]


def test_a_torn_line_is_passed_over_and_ended_by_the_next(tmp_path, caplog):
    path = tmp_path / "j.jsonl"
    append_lines(path, [{"a": 1}, {"a": 2}])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4)
    assert read_lines(path) == [{"a": 1}]
    assert f"{path} line 2 is torn and was passed over" in caplog.text
    append_lines(path, [{"a": 3}])
    assert read_lines(path) == [{"a": 1}, {"a": 3}]


def test_a_killed_writer_leaves_every_line_it_finished(tmp_path):
    path = tmp_path / "j.jsonl"
    code = (
        "import itertools, pathlib, sys\nfrom pipeline.healing.journal import append_lines\n"
        "for n in itertools.count():\n"
        "    append_lines(pathlib.Path(sys.argv[1]), [{'n': n, 'pad': 'x' * 5000}])\n"
        "    print(n, flush=True)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    told = [writer.stdout.readline() for _ in range(50)]
    os.kill(writer.pid, 9)
    told += writer.communicate()[0].split()
    found = [row["n"] for row in read_lines(path)]
    assert found == list(range(len(found))) and len(found) >= len(told)
    append_lines(path, [{"n": "after"}])
    assert read_lines(path)[-1] == {"n": "after"}
    assert len(read_lines(path)) > len(told)
