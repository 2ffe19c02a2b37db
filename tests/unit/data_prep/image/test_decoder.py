import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data_prep.config import DecodeConfig, FilterConfig, ImageConfig
from data_prep.image.decoder import Decoder, shared_decoder
from data_prep.image.encode import encode_image
from data_prep.image.verify import Verification
from data_prep.schema import Status

IMAGE, KEEP = ImageConfig(size=32), FilterConfig()
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def pack(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(side=64, channels=3):
    shape = (side, side, channels)
    return Image.fromarray(np.random.default_rng().integers(0, 256, shape, dtype=np.uint8))


@contextmanager
def decoder(image=IMAGE, keep=KEEP, verification=None, **settings):
    with Decoder(image, keep, DecodeConfig(**settings), verification) as result:
        yield result


def children(parent=None):
    """The children a process has got since the test began, by default this process.

    Tests before these may have left other children, such as multiprocessing's resource tracker,
    or a decoder that is shared.
    """
    return [c for c in psutil.Process(parent).children() if c.pid not in _BEFORE]


_BEFORE = set()


@pytest.fixture(autouse=True)
def children_before():
    _BEFORE.clear()
    _BEFORE.update(child.pid for child in psutil.Process().children())


@cache
def slow_image():
    """About a second of work, also on a machine that has nothing else to do."""
    tile = noise(500)
    picture = Image.new("RGB", (5000, 5000))
    for place in range(100):
        picture.paste(tile, (place % 10 * 500, place // 10 * 500))
    return pack(picture, "WEBP", method=0)


def when_busy(process, then):
    """Calls `then` with the process once it has worked for a while on what it got."""

    def watch():
        with_start = sum(process.cpu_times()[:2])
        while sum(process.cpu_times()[:2]) < with_start + 0.1:
            time.sleep(0.01)
        then(process)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_it_encodes_as_in_this_process():
    with decoder() as apart:
        for kind in FORMATS:
            data = pack(noise(), kind)
            assert apart.encode(data) == encode_image(data, IMAGE, KEEP)


def test_a_file_that_stays_as_it_is_comes_back_whole():
    data = pack(noise(256), "PNG") + os.urandom(5_000_000)
    with decoder(ImageConfig(mode="untouched")) as apart:
        assert apart.encode(data).data == data


def test_the_process_is_reused_and_ends_with_the_decoder():
    with decoder() as apart:
        assert not children()
        data = pack(noise())
        apart.encode(data)
        first = children()
        apart.encode(b"no image")
        assert [child.pid for child in children()] == [first[0].pid]
    assert not children()
    with pytest.raises(RuntimeError, match="the decoder is closed"):
        apart.encode(data)


def test_a_process_killed_once_does_not_cost_the_image():
    with decoder() as apart:
        apart.encode(pack(noise()))
        (child,) = children()
        thread = when_busy(child, lambda process: process.kill())
        assert apart.encode(slow_image()).status is Status.OK
        thread.join()
        assert child.pid not in [other.pid for other in children()]


def test_a_process_killed_twice_costs_the_image_alone():
    with decoder() as apart:
        apart.encode(pack(noise()))

        def kill_both(process):
            process.kill()
            while not (others := [c for c in children() if c.pid != process.pid]):
                time.sleep(0.01)
            others[0].kill()

        (child,) = children()
        thread = when_busy(child, kill_both)
        # The second one dies while it starts or while it decodes.
        try:
            encoded = apart.encode(slow_image())
        except RuntimeError as error:
            assert "cannot start (exit code -9)" in str(error)
        else:
            assert encoded.status is Status.DECODER_CRASHED
            assert encoded.error == "the decoding process was killed by SIGKILL"
        thread.join()
        assert apart.encode(pack(noise())).status is Status.OK


def test_a_crash_costs_the_image_alone(monkeypatch):
    """A library that dies at every image: its process ends by SIGSEGV, as often as it is tried."""
    command = (
        "import os, signal; from data_prep.image import decoder_child as c; "
        "c.encode_verified = lambda *_: os.kill(os.getpid(), signal.SIGSEGV); c.main({}, {}, {})"
    )
    data = pack(noise())
    with decoder() as apart:
        with monkeypatch.context() as patch:
            patch.setattr("data_prep.image.decoder._COMMAND", command)
            encoded = apart.encode(data)
            assert encoded.status is Status.DECODER_CRASHED
            assert encoded.error == "the decoding process was killed by SIGSEGV"
        assert apart.encode(data).status is Status.OK


def test_a_fault_of_ours_is_an_internal_error(monkeypatch):
    command = (
        "from data_prep.image import decoder_child as c; "
        "c.encode_verified = lambda *_: 1 / 0; c.main({}, {}, {})"
    )
    monkeypatch.setattr("data_prep.image.decoder._COMMAND", command)
    with decoder() as apart:
        encoded = apart.encode(b"")
    assert encoded.status is Status.INTERNAL_ERROR
    assert encoded.error == "ZeroDivisionError: division by zero"


def test_a_process_that_cannot_start_is_told(monkeypatch):
    monkeypatch.setattr("data_prep.image.decoder._COMMAND", "raise SystemExit(7) # {}{}{}")
    with decoder() as apart:
        with pytest.raises(RuntimeError, match=r"cannot start \(exit code 7\)"):
            apart.encode(b"")


def test_the_time_limit_costs_the_image_alone():
    with decoder(timeout_seconds=0.5) as apart:
        started = time.monotonic()
        encoded = apart.encode(slow_image())
        assert encoded.status is Status.DECODER_TIMEOUT
        assert encoded.error == "not decoded within 0.5 s"
        assert time.monotonic() - started < 60
        assert apart.encode(pack(noise(8), "BMP")).status is Status.OK


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_the_memory_limit_costs_the_image_alone(kind):
    big = Image.new("RGB" if kind == "JPEG" else "RGBA", (5000, 5000))
    options = {"JPEG": {"progressive": True}, "WEBP": {"method": 0}}.get(
        kind, {"compress_level": 1}
    )
    data = pack(big, kind, **options)
    with decoder(memory_bytes=120_000_000) as apart:
        assert apart.encode(data).status is Status.DECODER_MEMORY
        assert apart.encode(pack(noise())).status is Status.OK
        assert len(children()) == 1


def test_a_file_larger_than_the_memory_is_refused():
    with decoder(memory_bytes=100_000_000) as apart:
        encoded = apart.encode(bytes(150_000_000))
        assert (encoded.status, encoded.error) == (Status.DECODER_MEMORY, "the file alone")
        assert apart.encode(pack(noise())).status is Status.OK


def test_the_default_memory_decodes_the_default_pixels():
    data = pack(Image.new("RGBA", (9459, 9459), (1, 2, 3, 4)), compress_level=1)
    with decoder(image=ImageConfig(size=256)) as apart:
        assert apart.encode(data).status is Status.OK


def test_a_bomb_of_one_bit_pixels():
    data = pack(Image.new("1", (12_000, 12_000)), optimize=True)
    assert len(data) < 40_000
    with decoder(memory_bytes=250_000_000) as apart:
        assert apart.encode(data).status is Status.TOO_MANY_PIXELS
    keep = FilterConfig(max_pixels=150_000_000)
    with decoder(keep=keep, memory_bytes=250_000_000) as apart:
        assert apart.encode(data).status is Status.OK


def test_two_processes_serve_two_threads():
    pictures = [pack(noise()) for _ in range(20)]
    results = {}
    with decoder(processes=2) as apart:

        def work(part):
            for index in range(part, 20, 4):
                results[index] = apart.encode(pictures[index])

        threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(children()) == 2
    assert [results[i] for i in range(20)] == [encode_image(p, IMAGE, KEEP) for p in pictures]


def test_children_hold_none_of_the_parents_files(tmp_path):
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with decoder() as apart:
            apart.encode(pack(noise()))
            (child,) = children()
            held = [os.readlink(link) for link in Path(f"/proc/{child.pid}/fd").iterdir()]
            assert not [name for name in held if name == str(tmp_path / "open")]


@pytest.mark.parametrize("busy", [False, True])
def test_a_parent_that_is_killed_leaves_no_child(busy):
    code = (
        "import sys, threading, time; from data_prep.config import *; "
        "from data_prep.image.decoder import Decoder\n"
        "d = Decoder(ImageConfig(), FilterConfig(), DecodeConfig(timeout_seconds=1))\n"
        "d.encode(b''); print('up', flush=True)\n"
        "d.encode(sys.stdin.buffer.read()); time.sleep(60)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as parent:
        parent.stdout.readline()
        (child,) = children(parent.pid)
        if busy:
            parent.stdin.write(slow_image())
            parent.stdin.close()
            time.sleep(0.3)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        child.wait(timeout=60)


def test_the_shared_decoder_stays_until_the_settings_change():
    settings = (IMAGE, KEEP, DecodeConfig(), Verification())
    first = shared_decoder(*settings)
    first.encode(b"")
    assert shared_decoder(*settings) is first
    second = shared_decoder(ImageConfig(size=8), *settings[1:])
    assert second is not first and not children()
    second.close()


def mutate(data, rng):
    """Bits flipped anywhere, or in the header; cut off; or a stretch of it twice."""
    data = bytearray(data)
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
    elif kind == 2:
        del data[rng.randrange(len(data)) :]
    else:
        start, end = sorted(rng.randrange(len(data)) for _ in range(2))
        data[end:end] = data[start:end]
    return bytes(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_images_end_in_a_status(kind):
    rng = random.Random()
    originals = [
        pack(noise(32, channels), kind) for channels in ((3,) if kind == "JPEG" else (3, 4))
    ]
    expected = {Status.OK, Status.UNDECODABLE, Status.TOO_MANY_PIXELS, Status.DECODER_MEMORY}
    expected |= {Status.FILTERED_ASPECT_RATIO, Status.FILTERED_SIZE}
    with decoder(memory_bytes=400_000_000, timeout_seconds=30) as apart:
        for _ in range(50):
            data = mutate(rng.choice(originals), rng)
            encoded = apart.encode(data)
            assert encoded.status in expected, (data.hex(), encoded)
        assert apart.encode(originals[0]).status is Status.OK
