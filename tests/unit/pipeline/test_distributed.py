import os
import signal

import pytest

from pipeline.distributed import DistInfo, StopRequest, sum_over_ranks

ALONE = DistInfo.alone()


@pytest.fixture
def handlers():
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_asks_to_stop(handlers, monkeypatch, number):
    monkeypatch.delenv("ROSEATE_STOP_FILE", raising=False)
    stop = StopRequest()
    assert not stop.asked
    os.kill(os.getpid(), number)
    assert stop.asked


def test_a_file_asks_to_stop(handlers, monkeypatch, tmp_path):
    monkeypatch.setenv("ROSEATE_STOP_FILE", str(tmp_path / "stop"))
    stop = StopRequest()
    assert not stop.asked
    (tmp_path / "stop").touch()
    assert stop.asked


def test_a_sum_alone_is_the_number_itself():
    assert sum_over_ranks(3.5, ALONE) == 3.5
