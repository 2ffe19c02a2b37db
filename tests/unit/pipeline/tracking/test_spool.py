import json
import random
import subprocess
import sys
import threading

import pytest

from pipeline.tracking.spool import FILES, SPOOL, SenderState, Spool, read_records, unsent


def rows(path, offset=0):
    return [(r["n"], end) for r, end in read_records(path, offset)]


def test_records_come_back_in_their_order_with_their_time(tmp_path):
    spool = Spool(tmp_path)
    for n in range(5):
        spool.append("metrics", n=n, value=float("nan"))
    found = rows(tmp_path / "spool.jsonl")
    assert [n for n, _ in found] == [0, 1, 2, 3, 4]
    assert rows(tmp_path / "spool.jsonl", found[2][1]) == found[3:]
    assert {r["kind"] for r, _ in read_records(tmp_path / "spool.jsonl")} == {"metrics"}


def test_a_torn_line_costs_itself_alone(tmp_path):
    """Torn at each of its bytes; where its newline alone is gone, the next start makes it whole."""
    whole = Spool(tmp_path / "whole")
    for n in range(4):
        whole.append("tags", n=n, pad="\u00fc\\" * n)
    data = (tmp_path / "whole" / SPOOL).read_bytes()
    *_, begin, end = [end for _, end in rows(tmp_path / "whole" / SPOOL)]
    for size in range(begin, end):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / SPOOL).write_bytes(data[:size])
        assert [n for n, _ in rows(folder / SPOOL)] == [0, 1, 2]
        Spool(folder).append("tags", n=99)
        again = [3] if size == end - 1 else []
        assert [n for n, _ in rows(folder / SPOOL)] == [0, 1, 2, *again, 99]


def test_several_threads_never_mix_their_lines(tmp_path):
    spool = Spool(tmp_path)

    def write(thread):
        for n in range(200):
            spool.append("tags", n=(thread, n), pad="x" * random.randrange(5000))

    threads = [threading.Thread(target=write, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [tuple(n) for n, _ in rows(tmp_path / "spool.jsonl")]
    for thread in range(4):
        assert [n for t, n in found if t == thread] == list(range(200))


def test_what_is_kept_is_what_the_file_held_then(tmp_path):
    spool, file = Spool(tmp_path / "spool"), tmp_path / "a.json"
    file.write_text("1")
    spool.append_file("file", file, name="a.json")
    file.write_text("2")
    spool.append_file("file", b"abc", name="b")
    kept = [r["kept"] for r, _ in read_records(tmp_path / "spool" / SPOOL)]
    assert [(tmp_path / "spool" / FILES / name).read_bytes() for name in kept] == [b"1", b"abc"]


@pytest.mark.parametrize("limit", [5_000, 5_011, 5_100])
def test_a_disk_that_takes_no_more_loses_records_and_stops_nobody(tmp_path, limit):
    """The operating system's own error, half-written line and all, from a limit on the size of files."""
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from pipeline.tracking.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))\n"
        "for n in range(200):\n    spool.append('tags', n=n)\n"
        "spool.append_file('file', b'x' * 6000, name='x')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))\n"
        "spool.append('tags', n=999)\n"
        "print(spool.lost, spool.error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    *kept, last = [n for n, _ in rows(tmp_path / SPOOL)]
    assert kept == list(range(len(kept))) and 100 < len(kept) < 200 and last == 999
    lost, _, reason = done.stdout.partition(" ")
    assert int(lost) == 201 - len(kept) and reason.strip() in (
        "File too large",
        "No space left on device",
    )
    assert done.stderr.count(f"roseate: {tmp_path} takes no more records (") == 1
    assert not list((tmp_path / FILES).iterdir())


def test_unsent_counts_behind_the_senders_place_in_every_file(tmp_path):
    one, two = Spool(tmp_path), Spool(tmp_path, "node_1.jsonl")
    for n in range(4):
        one.append("tags", n=n)
        two.append("metrics", n=n)
    assert unsent(tmp_path) == 8
    ends = [end for _, end in rows(tmp_path / "spool.jsonl")]
    SenderState(offsets={"spool.jsonl": ends[2]}).save(tmp_path)
    assert unsent(tmp_path) == 5
    assert json.loads((tmp_path / "state.json").read_text())["rejected"] == 0
