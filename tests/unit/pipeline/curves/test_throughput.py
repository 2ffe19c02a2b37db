import time

import psutil
import pytest
import torch

from pipeline.config import load_config
from pipeline.curves import mfu
from pipeline.curves.mfu import ModelFlops, count_flops, device_peak
from pipeline.curves.throughput import Throughput, memory

CPU = torch.device("cpu")


def test_a_point_is_of_its_window_and_the_summary_of_all():
    times = []  # before and after each look at the clock

    def timed(look):
        times.append(time.perf_counter())
        found = look()
        times.append(time.perf_counter())
        return found

    def per_second(count, first, last):
        """Least and most, between two of the looks."""
        longest = times[2 * last + 1] - times[2 * first]
        return count / longest, count / (times[2 * last] - times[2 * first + 1])

    flops = ModelFlops(per_token=1e6, per_image=1e7)
    counted = timed(lambda: Throughput(flops, peak=1e9))
    counted.add(samples=8, tokens=100.0, images=8, waited=0.01)
    time.sleep(0.2)
    first = timed(counted.point)
    counted.add(samples=80, tokens=200.0, images=8, waited=0.0)
    time.sleep(0.2)
    second, whole = timed(counted.point), timed(counted.since_start)
    least, most = per_second(8, 0, 1)
    assert least <= first["samples_per_second"] <= most
    assert first["mfu"] == pytest.approx(first["tokens_per_second"] * 1.8e6 / 1e9)
    least, most = per_second(200, 1, 2)
    assert least <= second["tokens_per_second"] <= most
    assert second["step_wait_ratio"] == 0 < first["step_wait_ratio"]
    least, most = per_second(88, 0, 3)
    assert least <= whole["samples_per_second"] <= most


def test_without_a_peak_there_is_no_mfu():
    counted = Throughput(ModelFlops(1.0, 1.0), None)
    counted.add(samples=1, tokens=1.0, images=1, waited=0.0)
    assert "mfu" not in counted.point() and "mfu" not in Throughput().point()


def test_memory_is_that_of_this_process():
    assert memory()["memory/process_gb"] == pytest.approx(
        psutil.Process().memory_info().rss / 1e9, rel=0.05
    )


def test_flops_grow_with_the_tokens_and_leave_cached_towers_out():
    config = load_config("flamingo_3b", ["data.max_text_tokens=16"])
    whole, cached = (count_flops(config, "bf16", has_features=f) for f in (False, True))
    assert whole.per_token == cached.per_token
    # ViT-L/14 takes 2 x 304 M x 257 operations for its products alone; the resampler remains.
    assert whole.per_image - cached.per_image == pytest.approx(2 * 304e6 * 257, rel=0.15)
    # A trained parameter takes 6, a frozen one 2 to 4 of every token.
    assert 2 * 1.3e9 < whole.per_token < 6 * 3e9
    assert whole.of(3, 2) == pytest.approx(3 * whole.per_token + 2 * whole.per_image)


def test_the_peak_of_a_device(monkeypatch):
    assert device_peak(2.5, CPU, "fp32") == 2.5e12
    assert device_peak("auto", CPU, "fp32") is None
    gpu = torch.device("cuda", 0)
    for told, precision, peak in (
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA L40S", "fp16", 362e12),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("NVIDIA GeForce RTX 3090", "bf16", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, told=told: told)
        assert device_peak("auto", gpu, precision) == peak, told


def test_the_measured_peak_is_reached_by_no_product_of_two_matrices():
    # Before and after, since others may hold the cores for a while.
    peaks = [mfu.measure_peak(CPU, torch.float32)]
    one = torch.rand(512, 512)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - began)
    peaks.append(mfu.measure_peak(CPU, torch.float32))
    assert 0 < 2 * 512**3 / best < 3 * max(peaks)
