"""Decodes images in processes of their own, so that a bad one costs its row and nothing else.

A process that crashes, or is too slow, is replaced; one that wants more memory than it may have
refuses the image by itself. The processes end with whoever made them, however that ends.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

from data_prep.config import DecodeConfig, FilterConfig, ImageConfig
from data_prep.image import frames
from data_prep.image.encode import EncodedImage
from data_prep.image.verify import Verification
from data_prep.schema import Status

_START_SECONDS = 120.0
_COMMAND = "import sys; from data_prep.image.decoder_child import main; main({}, {}, {})"
_ENVIRONMENT = {
    # No threads of numpy's, which nobody needs here and which take memory.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # glibc keeps what one image took for the next one: a tenth of the time went into page faults.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


class Decoder:
    """`encode_verified` in `decode.processes` processes, which start when they are first needed.

    May be used from as many threads at once as there are processes; further ones wait.
    """

    def __init__(
        self,
        image: ImageConfig,
        keep: FilterConfig,
        decode: DecodeConfig,
        verification: Verification | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            image: how to store images.
            keep: which to keep.
            decode: how many processes, and their limits.
            verification: what hashes `encode` is given; None for none.
        """
        verification = verification or Verification()
        self._settings = {
            "image": image.model_dump(mode="json"),
            "keep": keep.model_dump(mode="json"),
            "verification": {
                "kind": verification.kind,
                "max_distance": verification.max_distance,
            },
        }
        self._decode = decode
        self._lock = threading.Lock()
        self._closed = False
        # Last in, first out: a process is not started while another one is idle.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(decode.processes):
            self._idle.put(None)

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode(self, data: bytes, expected: str | None = None) -> EncodedImage:
        """Encodes one image; blocks, and never raises for what the bytes hold.

        A crash is tried once more: the kernel may have killed the process for another's memory.

        Args:
            data: the file as fetched.
            expected: its hash by the table, where there is verification.

        Raises:
            RuntimeError: the process cannot be started, or the decoder is closed.
        """
        process = self._idle.get()
        try:
            for last in (False, True):
                if self._closed:
                    raise RuntimeError("the decoder is closed")
                if process is None:
                    process = _Process(self._settings, self._decode)
                encoded = process.encode(data, expected)
                if not process.usable:
                    process.end()
                    process = None
                if encoded.status is not Status.DECODER_CRASHED or last:
                    return encoded
            raise AssertionError
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Ends the processes, once they are through with what they have."""
        with self._lock:
            if self._closed:
                return
            for process in [self._idle.get() for _ in range(self._decode.processes)]:
                if process is not None:
                    process.end()
            self._closed = True
            for _ in range(self._decode.processes):
                self._idle.put(None)


_shared: tuple[tuple, Decoder] | None = None
_shared_lock = threading.Lock()


def shared_decoder(
    image: ImageConfig, keep: FilterConfig, decode: DecodeConfig, verification: Verification
) -> Decoder:
    """The decoder of this process, which stays from one shard to the next.

    Other settings than before end the one that there was: ask once all that used it are through.
    """
    global _shared
    settings = (image, keep, decode, verification)
    with _shared_lock:
        if _shared is None or _shared[0] != settings:
            if _shared is not None:
                _shared[1].close()
            _shared = (settings, Decoder(*settings))
        return _shared[1]


class _Process:
    """One decoding process, used by one thread at a time."""

    def __init__(self, settings: dict, decode: DecodeConfig) -> None:
        self.usable = True
        self._timeout_seconds = decode.timeout_seconds
        self._connection, theirs = socket.socketpair()
        arguments = (theirs.fileno(), decode.memory_bytes, decode.timeout_seconds)
        # The same modules as here, wherever they were found.
        environment = os.environ | _ENVIRONMENT
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._child = subprocess.Popen(
            [sys.executable, "-c", _COMMAND.format(*arguments)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            frames.send(self._connection, settings)
            frames.receive(self._connection, time.monotonic() + _START_SECONDS)
        except (OSError, EOFError) as error:
            self.end()
            code = self._child.returncode
            raise RuntimeError(f"a decoding process cannot start (exit code {code})") from error

    def encode(self, data: bytes, expected: str | None) -> EncodedImage:
        limit = self._timeout_seconds
        deadline = time.monotonic() + limit
        self.usable = False
        try:
            # Where the process gives up before it has read all, it has said why.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._connection.settimeout(limit)
                frames.send(self._connection, expected, data)
            header, stored = frames.receive(self._connection, deadline)
        except TimeoutError:
            return EncodedImage(Status.DECODER_TIMEOUT, f"not decoded within {limit:g} s")
        except (OSError, EOFError):
            return EncodedImage(Status.DECODER_CRASHED, self._cause_of_death())
        header["status"] = Status(header["status"])
        # After a want of memory nobody knows what is left of it.
        self.usable = header["status"] is not Status.DECODER_MEMORY
        if header.pop("unchanged"):
            stored = data
        return EncodedImage(data=stored, **header)

    def _cause_of_death(self) -> str:
        try:
            code = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the decoding process has closed its socket"
        if code < 0:
            return f"the decoding process was killed by {signal.Signals(-code).name}"
        return f"the decoding process ended with exit code {code}"

    def end(self) -> None:
        self._connection.close()
        self._child.kill()
        self._child.wait()
