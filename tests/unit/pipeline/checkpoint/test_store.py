"""Checkpoints on a disk and in a store: only whole ones are found, kept by policy, refused in words."""

import errno
import os
import resource
import signal
import subprocess

import pytest
import torch

from data_prep.errors import ConfigError
from data_prep.storage import Folder
from pipeline.checkpoint import container
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.resume import changed_settings, check_frozen, check_resume
from pipeline.checkpoint.store import find_checkpoint, names, set_aside, step_of
from pipeline.checkpoint.writer import CheckpointWriter, SaveError
from pipeline.distributed import DistInfo
from pipeline.engine.fragments import EngineView, Fragment
from tests.helpers.s3 import s3_bucket
from tests.helpers.tiny import tiny_config

ALONE = DistInfo.alone()


def view_of(size=1000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.nn.Parameter(torch.randn(size, generator=generator))
    optimizer = torch.optim.AdamW([flat])
    flat.grad = torch.randn(size, generator=generator)
    optimizer.step()
    fragments = [Fragment("a", 400, 0, 400, 0, 0), Fragment("b", size - 400, 0, size - 400, 0, 400)]
    shapes = {"a": (20, 20), "b": (size - 400,)}
    return EngineView([flat.detach()], [flat], fragments, shapes, optimizer, [32])


def state(step, root="r", **more):
    config = tiny_config(root).model_dump(mode="json", by_alias=True)
    return {"step": step, "config": config, "frozen": {"model.vision.path": "a" * 64}} | more


def writer_to(folder, **settings):
    store = folder if isinstance(folder, Folder) else Folder(folder, "checkpoint.folder")
    return store, CheckpointWriter(store, CheckpointConfig(**settings), ALONE)


def save(writer, step, view=None, **more):
    """What went wrong, or None."""
    writer.save(view or view_of(), 1, state(step, **more))
    return writer.settle()


@pytest.fixture(params=["disk", "store"])
def place(request, tmp_path):
    if request.param == "disk":
        yield Folder(tmp_path / "checkpoints", "checkpoint.folder")
        return
    with s3_bucket() as bucket:
        yield Folder(f"{bucket.url}/run/checkpoints", "checkpoint.folder")


def test_what_is_written_is_read(place):
    store, writer = writer_to(place)
    view = view_of()
    assert save(writer, 7, view, run_id="r") is None
    found = find_checkpoint(store)
    assert found.step == 7 and found.state["run_id"] == "r"
    weights = found.weights()
    assert torch.equal(weights["a"].view(-1), view.flats[0][:400])
    assert torch.equal(weights["b"], view.flats[0][400:])
    (chunk,) = found.read("exact1", "b", 17, 300)
    assert chunk.start == 17
    moment = view.inner.state[view.keys[0]]["exp_avg"]
    assert torch.equal(chunk.values, moment[417:700])
    assert found.steps == {"a": 1, "b": 1}
    found.close()


def test_the_newest_whole_one_is_taken(tmp_path, caplog):
    store, writer = writer_to(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        save(writer, step)
    data = tmp_path / "step_000003" / container.rank_file(0)
    content = bytearray(data.read_bytes())
    content[-9] ^= 1
    data.write_bytes(content)  # a flipped bit
    assert find_checkpoint(store).step == 2
    assert "has another checksum" in caplog.text and "passed over" in caplog.text
    index = tmp_path / "step_000002" / container.INDEX
    index.write_bytes(index.read_bytes()[:-10])  # cut short
    assert find_checkpoint(store).step == 1
    written = tmp_path / "step_000001" / container.STATE
    written.write_text(written.read_text().replace('"step": 1', '"step": 9'))
    assert find_checkpoint(store) is None
    written.write_text("{")
    assert find_checkpoint(store) is None
    assert "cannot be read" in caplog.text
    assert find_checkpoint(Folder(tmp_path / "missing", "checkpoint.folder")) is None


def test_a_missing_file_breaks_a_checkpoint(tmp_path, caplog):
    store, writer = writer_to(tmp_path)
    save(writer, 1)
    (tmp_path / "step_000001" / container.rank_file(0)).unlink()
    assert find_checkpoint(store) is None
    assert "rank_00000.safetensors cannot be read" in caplog.text


def test_half_written_ones_are_not_seen_and_swept(place):
    store, writer = writer_to(place)
    save(writer, 1)
    half = ".step_000002.dead" if store.is_local else "step_000002.dead"
    store.write(f"{half}/{container.rank_file(0)}", b"x")
    assert find_checkpoint(store).step == 1
    writer_to(store)
    assert not store.exists(f"{half}/{container.rank_file(0)}")
    assert find_checkpoint(store).step == 1


def test_the_policy_keeps_the_last_ones_every_so_many_and_the_best(place):
    store, writer = writer_to(place, keep_last=2, keep_every_steps=4)
    scores = {3: 0.5, 5: 0.9}
    for step in range(1, 10):
        save(writer, step, score=scores.get(step))
    assert sorted(step_of(n) for n in names(store)) == [3, 4, 8, 9]


def test_the_same_step_again_takes_the_place_of_the_first(place):
    store, writer = writer_to(place)
    save(writer, 1, view_of(seed=1))
    store, writer = writer_to(place)
    view = view_of(seed=2)
    save(writer, 1, view)
    assert len(names(store)) == 1
    found = find_checkpoint(store)
    assert torch.equal(found.weights()["b"], view.flats[0][400:])
    found.close()


def test_a_run_that_starts_anew_finds_none_and_loses_none_on_a_disk(place, tmp_path):
    store, writer = writer_to(place)
    assert set_aside(store) is None
    for turn in (1, 2):
        save(writer, turn)
        told = set_aside(store)
        assert names(store) == []
        if store.is_local:
            assert str(tmp_path / f"checkpoints.{turn}") in told
            assert names(Folder(f"{store.url}.{turn}", "x")) == [f"step_{turn:06d}"]
        else:
            assert "removed 1 checkpoints" in told


def test_only_earlier_ones_where_asked(tmp_path):
    store, writer = writer_to(tmp_path, keep_last=5)
    for step in (2, 4, 6):
        save(writer, step)
    assert find_checkpoint(store, before=6).step == 4
    assert find_checkpoint(store, before=2) is None


def test_a_parameter_that_is_not_whole_is_not_committed(tmp_path):
    store, writer = writer_to(tmp_path)
    view = view_of()
    view.shapes["a"] = (21, 20)
    assert "400 of 420 elements of a" in str(save(writer, 1, view))
    assert names(store) == [] and not list(tmp_path.glob(".step*"))


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path):
    """No file may grow beyond a limit: the system refuses the write as a full disk does."""
    store, writer = writer_to(tmp_path)
    save(writer, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        error = save(writer, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "step_000002 cannot be written" in str(error) and "File too large" in str(error)
    assert names(store) == ["step_000001"] and not list(tmp_path.glob(".step*"))
    assert save(writer, 3) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_really_full_disk_loses_no_earlier_checkpoint(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount here")
    try:
        store, writer = writer_to(tmp_path)
        save(writer, 1)
        error = save(writer, 2, view_of(20_000))
        assert os.strerror(errno.ENOSPC) in str(error)
        assert find_checkpoint(store).step == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_place_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="checkpoint.folder = ") as error:
        writer_to(tmp_path / "file" / "checkpoints")
    assert "is a place to write checkpoints" in str(error.value)


def test_a_rank_that_never_writes_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.checkpoint.writer.sum_over_ranks", lambda value, info: value)

    def half_writer(seconds):
        store, writer = writer_to(tmp_path, timeout_seconds=seconds, failures=5)
        writer._info = DistInfo(0, 2, ALONE.device)  # the second one is dead
        return store, writer

    _, writer = half_writer(1)
    assert "no part of ranks [1] after 1 s" in str(save(writer, 1))
    store, writer = half_writer(600)
    writer.save(view_of(), 1, state(1))
    writer._abandoned.set()  # the second one has said that it cannot
    assert "rank 1 could not write its part" in str(writer.settle())
    assert names(store) == []


def test_some_failures_in_a_row_are_survived_and_one_more_is_not(tmp_path):
    store, writer = writer_to(tmp_path, failures=1)
    broken = view_of()
    broken.shapes["a"] = (21, 20)
    assert save(writer, 1, broken) is not None
    assert save(writer, 2) is None
    assert save(writer, 3, broken) is not None
    with pytest.raises(SaveError, match="step_000004 cannot be written: 400 of 420"):
        save(writer, 4, broken)
    writer.save(broken, 1, state(5))
    with pytest.raises(SaveError):
        writer.settle(survive=False)
    assert names(store) == ["step_000002"]


def test_another_tower_and_another_optimizer_are_named(tmp_path):
    store, writer = writer_to(tmp_path)
    save(writer, 1)
    found = find_checkpoint(store)
    check_resume(found, tiny_config("r"), {"model.vision.path": "a" * 64})
    check_resume(found, tiny_config("r", "optim.name=adamw"), {})
    with pytest.raises(ConfigError) as error:
        check_resume(
            found, tiny_config("r", "optim.name=lion_8bit"), {"model.vision.path": "b" * 64}
        )
    assert "optim.name = 'lion_8bit'" in str(error.value)
    assert "model.vision.path = 'weights bbbbbbbbbbbb'" in str(error.value)
    with pytest.raises(ConfigError, match=r"trained with \(aaaaaaaaaaaa\)"):
        check_frozen(found, {"model.vision.path": "b" * 64})


def test_changed_settings_are_told(tmp_path):
    store, writer = writer_to(tmp_path)
    save(writer, 1)
    config = tiny_config("r", "optim.lr=0.5", "tracking.experiment=x", "batch.global_size=16")
    changed = changed_settings(find_checkpoint(store), config)
    assert changed == {"batch.global_size": (8, 16), "optim.lr": (2e-3, 0.5)}
