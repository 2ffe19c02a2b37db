"""A web on loopback that answers with any bytes at all, and knows who connected."""

import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Answer = bytes | Callable[["Exchange"], None]


class Exchange(socketserver.StreamRequestHandler):
    """One connection: reads a request's head, then answers by its path."""

    def handle(self) -> None:
        web: RawWeb = self.server.web
        web.connections += 1
        line = self.rfile.readline(65536).decode("latin-1").split()
        self.headers = {}
        while (header := self.rfile.readline(65536)) not in (b"\r\n", b""):
            name, _, value = header.decode("latin-1").partition(":")
            self.headers[name.lower()] = value.strip()
        if len(line) < 2:
            return
        web.requests[line[1]] += 1
        web.headers[line[1]] = self.headers
        answer = web.answers.get(line[1], head("404 Not Found"))
        try:
            if callable(answer):
                answer(self)
            else:
                self.wfile.write(answer)
        except OSError:
            pass  # the client had enough

    def drip(self, start: bytes, drop: bytes, seconds: float = 0.05) -> None:
        """Sends without end, slowly; until the client or the web is gone."""
        self.wfile.write(start)
        while not self.server.web.closing.is_set():
            self.wfile.write(drop)
            time.sleep(seconds)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


class RawWeb:
    """`answers` maps paths to what is sent; `connections`, `requests`, `headers` tell what came."""

    def __init__(self, address: str) -> None:
        self.answers: dict[str, Answer] = {}
        self.connections = 0
        self.requests: Counter[str] = Counter()
        self.headers: dict[str, dict[str, str]] = {}
        self.closing = threading.Event()
        self._server = _Server((address, 0), Exchange)
        self._server.web = self
        self.url = f"http://{address}:{self._server.server_address[1]}"
        self.port = self._server.server_address[1]

    @contextmanager
    def serving(self) -> Iterator["RawWeb"]:
        """Answers while the context is open."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._server.shutdown()
            self._server.server_close()


def head(status: str, *headers: str) -> bytes:
    """The head of an answer, and with it the whole of one without a body."""
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *headers, "", ""]).encode(
        "latin-1"
    )


def image(body: bytes, *headers: str) -> bytes:
    """An answer with an image in it."""
    return (
        head("200 OK", "Content-Type: image/png", f"Content-Length: {len(body)}", *headers) + body
    )
