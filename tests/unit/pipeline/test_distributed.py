import os
import signal

import pytest
import torch

from pipeline.distributed import DistInfo, StopRequest, sum_over_ranks

ALONE = DistInfo(0, 1, torch.device("cpu"))


@pytest.fixture
def handlers():
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_asks_to_stop(handlers, monkeypatch, number):
    monkeypatch.delenv("ROSEATE_STOP_FILE", raising=False)
    stop = StopRequest(ALONE)
    assert not stop.agreed()
    os.kill(os.getpid(), number)
    assert stop.agreed()


def test_a_file_asks_to_stop(handlers, monkeypatch, tmp_path):
    monkeypatch.setenv("ROSEATE_STOP_FILE", str(tmp_path / "stop"))
    stop = StopRequest(ALONE)
    assert not stop.agreed()
    (tmp_path / "stop").touch()
    assert stop.agreed()


def test_a_sum_alone_is_the_number_itself():
    assert sum_over_ranks(3.5, ALONE) == 3.5
