import time

import psutil
import pytest

from pipeline.tracking.spool import read_records
from pipeline.tracking.system import Node, NodeMonitor
from tests.helpers.waiting import eventually


def test_figures_are_those_of_this_node(tmp_path):
    def look():
        disk = psutil.disk_usage(str(tmp_path)).percent
        return disk, psutil.virtual_memory().used / 1e6

    node = Node(tmp_path)
    time.sleep(0.2)
    before, figures, after = look(), node.figures(), look()
    assert 0 <= figures["cpu_utilization_percentage"] <= 100
    # Others use the node meanwhile.
    disk, memory = (sorted(pair) for pair in zip(before, after, strict=True))
    assert disk[0] - 1 <= figures["disk_usage_percentage"] <= disk[1] + 1
    assert 0.7 * memory[0] <= figures["system_memory_usage_megabytes"] <= 1.3 * memory[1]


def test_the_first_rank_of_every_node_watches_it_and_a_restart_counts_on(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("SLURM_NODEID", "3")
    path = tmp_path / "node_3.jsonl"
    for least in (2, 4):
        with NodeMonitor(tmp_path, 0.05):
            eventually(lambda n=least: len(list(read_records(path))) >= n)
    records = [r for r, _ in read_records(path)]
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    assert {r["kind"] for r in records} == {"metrics"}
    assert "system/node_3/cpu_utilization_percentage" in records[0]["values"]


@pytest.mark.parametrize(("rank", "seconds"), [("1", 0.05), ("0", 0.0)])
def test_others_watch_nothing(tmp_path, monkeypatch, rank, seconds):
    monkeypatch.setenv("LOCAL_RANK", rank)
    with NodeMonitor(tmp_path, seconds):
        time.sleep(0.3)
    assert not list(tmp_path.iterdir())
