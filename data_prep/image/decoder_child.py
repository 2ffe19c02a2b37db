"""A decoding process: `main` answers requests on the socket it was given until that is closed."""

import os
import resource
import signal
import socket
import sys
from dataclasses import asdict, replace

from data_prep.config import FilterConfig, ImageConfig
from data_prep.image import frames
from data_prep.image.encode import EncodedImage
from data_prep.image.verify import Verification, encode_verified
from data_prep.schema import Status

# What some decoders take for a pixel before they say, for want of memory, that the file is broken.
_BYTES_PER_PIXEL = 8
# A task that is killed cannot end a decoder that is busy: it ends by itself, this long after the
# task would have ended it.
_GRACE_SECONDS = 5.0


def main(descriptor: int, memory_bytes: int, timeout_seconds: float) -> None:
    """Serves one task.

    Args:
        descriptor: of the socket.
        memory_bytes: what the process may take.
        timeout_seconds: limit of one image.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the task says when it is over
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection = socket.socket(fileno=descriptor)
    with connection, connection.makefile("rb") as stream:
        settings, _ = frames.read(stream)
        image, keep = ImageConfig(**settings["image"]), FilterConfig(**settings["keep"])
        verification = Verification(**settings["verification"])
        _warm_up()
        _limit(memory_bytes)
        frames.send(connection, "ready")
        _silence()
        while True:
            signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                request = frames.read(stream)
            except MemoryError:  # the rest of the body is still to come: begin anew
                _answer(connection, EncodedImage(Status.DECODER_MEMORY, "the file alone"), b"")
                return
            if request is None:
                return
            signal.setitimer(signal.ITIMER_REAL, timeout_seconds + _GRACE_SECONDS)
            expected, data = request
            del request
            try:
                encoded = encode_verified(data, expected, image, keep, verification)
            except MemoryError:
                encoded = EncodedImage(Status.DECODER_MEMORY, "MemoryError")
            except Exception as error:  # ours, not the file's: told rather than lived with
                reason = f"{type(error).__name__}: {error}"[:300]
                encoded = EncodedImage(Status.INTERNAL_ERROR, reason)
            _answer(connection, _blame(encoded, len(data), memory_bytes), data)


def _blame(encoded: EncodedImage, file_bytes: int, memory_bytes: int) -> EncodedImage:
    """Calls decoder_memory what may have failed for that: libjpeg and libwebp do not tell."""
    if encoded.status is not Status.UNDECODABLE or encoded.original_width is None:
        return encoded
    pixels = encoded.original_width * encoded.original_height
    if file_bytes + _BYTES_PER_PIXEL * pixels <= memory_bytes:
        return encoded
    reason = f"{encoded.error} (with {memory_bytes} bytes of memory)"
    return replace(encoded, status=Status.DECODER_MEMORY, error=reason)


def _answer(connection: socket.socket, encoded: EncodedImage, data: bytes) -> None:
    header = asdict(encoded)
    stored = header.pop("data")
    header["unchanged"] = stored is data  # need not travel back
    frames.send(connection, header, b"" if stored is data else stored)


def _warm_up() -> None:
    """Load Pillow's plugins before memory is limited and the first image waits."""
    from PIL import Image, ImageCms  # noqa: F401

    Image.init()


def _limit(memory_bytes: int) -> None:
    # RLIMIT_DATA counts what is allocated and not, as RLIMIT_AS does, every mapped library.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _silence() -> None:
    """C libraries write what they think of a file to standard error."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stderr.fileno())
    os.close(null)
