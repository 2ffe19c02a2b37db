"""What goes between a task and its decoding processes: a JSON header and a body, lengths first.

On a stream socket, one request at a time, so that whoever reads knows what comes.
"""

import json
import socket
import struct
import time
from typing import BinaryIO

_LENGTHS = struct.Struct(">IQ")


def send(connection: socket.socket, header: object, body: bytes = b"") -> None:
    """Writes one frame.

    Raises:
        OSError: the other end is gone, or the socket's time-out has passed.
    """
    text = json.dumps(header).encode()
    connection.sendall(_LENGTHS.pack(len(text), len(body)) + text)
    if body:
        connection.sendall(body)


def read(stream: BinaryIO) -> tuple[object, bytes] | None:
    """Reads one frame in the decoding process; None at the end of the stream."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    text_bytes, body_bytes = _LENGTHS.unpack(lengths)
    text = stream.read(text_bytes)
    body = stream.read(body_bytes)  # straight into the bytes, without a second copy
    return None if len(body) < body_bytes else (json.loads(text), body)


def receive(connection: socket.socket, deadline: float) -> tuple[object, bytes]:
    """Reads one frame in the task.

    Args:
        connection: a connected socket.
        deadline: by `time.monotonic`.

    Raises:
        TimeoutError: it was not there in time.
        EOFError: the other end is gone.
        OSError: likewise.
    """
    lengths = _receive(connection, _LENGTHS.size, deadline)
    text_bytes, body_bytes = _LENGTHS.unpack(lengths)
    text = _receive(connection, text_bytes, deadline)
    return json.loads(text), _receive(connection, body_bytes, deadline)


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    data, filled = bytearray(size), 0
    while filled < size:
        connection.settimeout(max(1e-3, deadline - time.monotonic()))
        got = connection.recv_into(memoryview(data)[filled:])
        if got == 0:
            raise EOFError("the other end is gone")
        filled += got
    return bytes(data)
