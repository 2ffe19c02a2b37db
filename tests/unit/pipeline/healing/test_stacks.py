import threading
import time
from datetime import timedelta

import torch.distributed as dist

from pipeline.healing.stacks import StackFile, report_stacks
from tests.helpers.waiting import eventually


def from_a_thread(function):
    """What a thread beside the main one sees."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(function()))
    thread.start()
    thread.join()
    return seen[0]


def test_the_main_thread_is_reported_innermost_last():
    report = from_a_thread(report_stacks)
    lines = report.stack.splitlines()
    assert any(line.endswith("in from_a_thread") and "test_stacks.py:" in line for line in lines)
    assert lines[-1].endswith("in join") or "threading.py" in lines[-1]
    assert not report.in_collective


def test_a_thread_in_a_collective_is_seen():
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=300))

    def meet(rank):
        # A call of torch.distributed that waits for the other.
        dist.distributed_c10d._store_based_barrier(
            rank, store, "two", 2, store.timeout, store.timeout / 4
        )

    thread = threading.Thread(target=meet, args=(0,))
    thread.start()
    eventually(lambda: from_a_thread(report_stacks).in_collective)
    meet(1)
    thread.join()
    assert not from_a_thread(report_stacks).in_collective


def test_an_empty_file_is_not_left_behind(tmp_path):
    path = tmp_path / "hang" / "rank_00000.txt"
    stacks = StackFile(path)
    stacks.arm(60)
    assert path.exists()
    stacks.close()
    assert not path.exists()


def test_what_an_earlier_process_left_stays(tmp_path):
    path = tmp_path / "rank_00000.txt"
    for title in ("first", "second"):
        stacks = StackFile(path)
        stacks.write(title)
        stacks.close()
    text = path.read_text()
    assert text.index("first") < text.index("second") and text.count("in write") == 2


def test_stacks_are_written_without_python_unless_it_is_armed_again(tmp_path):
    path = tmp_path / "rank_00000.txt"
    stacks = StackFile(path)
    stacks.arm(3)
    stacks.arm(600)
    time.sleep(3.5)
    assert path.stat().st_size == 0
    stacks.arm(0.1)
    eventually(lambda: "test_stacks.py" in path.read_text())
    stacks.close()
