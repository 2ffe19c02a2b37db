import logging
import math
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from pipeline.distributed import DistInfo
from pipeline.healing import watchdog as module
from pipeline.healing.post import Post
from pipeline.healing.watchdog import EXIT_HUNG, Watchdog, briefly
from tests.helpers.waiting import eventually

ALONE = DistInfo(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def master(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def names():
    return [thread.name for thread in threading.enumerate()]


def test_zero_seconds_watch_nothing(tmp_path):
    with Watchdog(ALONE, 0, tmp_path) as watchdog:
        watchdog.beat(1, "data")
        assert "watchdog" not in names()
    assert not list(tmp_path.iterdir())


def test_it_ends_at_once_and_leaves_nothing(tmp_path, monkeypatch):
    """However long it would listen."""
    listen, listening = Post.listen, threading.Event()

    def listen_long(post, _):
        listening.set()
        yield from listen(post, 600.0)

    monkeypatch.setattr(Post, "listen", listen_long)
    watchdog = Watchdog(ALONE, 600, tmp_path)
    watchdog.beat(1, "data")
    assert "watchdog" in names() and listening.wait(60)
    began = time.monotonic()
    watchdog.stop()
    watchdog.stop()
    assert time.monotonic() - began < 60
    assert "watchdog" not in names() and not list((tmp_path / "hang").iterdir())


def test_a_beat_costs_less_than_five_microseconds(tmp_path):
    with Watchdog(ALONE, 600, tmp_path) as watchdog:
        began = time.thread_time()
        for step in range(100_000):
            watchdog.beat(step, "forward")
        assert (time.thread_time() - began) / 100_000 < 5e-6


def test_without_a_socket_training_goes_on_unwatched(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with Watchdog(ALONE, 600, tmp_path) as watchdog:
        watchdog.beat(1, "data")
        assert "watchdog" not in names()
    assert "hung ranks will not be found, for want of a socket: " in caplog.text


def test_a_watchdog_that_fails_does_not_end_training(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("out of order")

    monkeypatch.setattr(module, "find_hung", fail)
    with Watchdog(ALONE, 5, tmp_path) as watchdog:
        watchdog.beat(1, "data")
        eventually(lambda: "rank 0 is no longer watched" in caplog.text)
    assert "out of order" in caplog.text


def test_a_process_alone_is_watched_too(tmp_path):
    code = (
        "import pathlib, sys, time, torch\nfrom pipeline.distributed import DistInfo\n"
        "from pipeline.healing.watchdog import Watchdog\n"
        "w = Watchdog(DistInfo(0, 1, torch.device('cpu')), 1.0, pathlib.Path(sys.argv[1]))\n"
        "w.beat(7, 'data')\ntime.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=dict(os.environ), timeout=300
    )
    assert done.returncode == EXIT_HUNG
    assert ": step 7, data, for 1 s; in no collective" in done.stderr
    assert f"ending with exit code 5; stacks are in {tmp_path}/hang" in done.stderr


def test_a_task_that_is_stuck_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "BRIEF_SECONDS", 0.2)
    stuck, done = threading.Event(), []
    briefly(lambda: done.append(stuck.wait(60)))
    assert not done
    stuck.set()


def test_a_word_without_the_secret_is_not_for_us(caplog):
    caplog.set_level(logging.DEBUG, "roseate")
    post, stranger = Post(ALONE), Post(ALONE)
    stranger._addresses = post._addresses
    stranger.send(0, "told", {})
    post.send(0, "standing", {"factor": math.inf})
    assert next(post.listen(60)) == (0, "standing", {"factor": math.inf}), "not what came before"
    post.send(0, "standing", {})
    post.hang_up()
    assert list(post.listen(5)) == []
    post.close()
    post.send(0, "standing", {})
    assert "rank 0 cannot be reached" in caplog.text
    stranger.close()
