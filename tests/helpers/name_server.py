"""A DNS server on loopback, of as much of RFC 1035 as an address takes."""

import ipaddress
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress

_A, _AAAA, _NAME_ERROR = 1, 28, 3


class NameServer:
    """Answers by UDP in a thread; use as a context manager.

    Attributes:
        answers: by name, a list of answers, each a list of addresses, one answer per question of a
            type; the last one is given again and again. A name that is not in it does not exist.
        ttl: seconds that answers may be kept.
        questions: how often each (name, type) was asked for.
    """

    def __init__(self, answers: dict[str, list[list[str]]], ttl: int = 0):
        self.answers = answers
        self.ttl = ttl
        self.questions: Counter[tuple[str, int]] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def address(self) -> str:
        """As `ingest.download.nameservers` has it."""
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> "NameServer":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                query, peer = self._socket.recvfrom(4096)
                if not query:
                    return
                self._socket.sendto(self._answer(query), peer)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
            at += 1 + query[at]
        name, end = ".".join(labels), at + 5
        (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
        known = self.answers.get(name)
        addresses = known[min(self.questions[name, kind], len(known) - 1)] if known else []
        self.questions[name, kind] += 1
        wanted = [
            ip for a in addresses if (ip := ipaddress.ip_address(a)).version == _VERSIONS.get(kind)
        ]
        code = 0 if known else _NAME_ERROR
        head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(wanted), 0, 0)
        records = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, self.ttl, len(ip.packed)) + ip.packed
            for ip in wanted
        )
        return head + query[12:end] + records


_VERSIONS = {_A: 4, _AAAA: 6}
