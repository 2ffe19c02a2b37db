"""A real `mlflow server` on loopback, and a line to it that can be slow, cut or dead."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from data_prep.ports import held_port


class MlflowServer:
    """Use as a context manager; `kill` and `start` may be called in between.

    Args:
        folder: database and artifacts.
        arguments: further ones of `mlflow server`.
        environment: further variables.
    """

    def __init__(self, folder: Path, *arguments: str, environment: dict | None = None) -> None:
        self.folder, self._held = folder, ExitStack()
        self.port = self._held.enter_context(held_port())
        self._arguments, self._environment = arguments, environment or {}
        self._process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "MlflowServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._held.close()

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), *self._arguments]
        # Its helpers for features that need no more processes than we have.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            command,
            env=environment | self._environment,
            stdout=(self.folder / "server.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.1)

    def kill(self) -> None:
        """At once, with its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Line:
    """A TCP line in front of a server.

    Attributes:
        delay: seconds before what a client sends is passed on.
        mode: ``open``; ``refuse`` closes new connections at once; ``cut`` passes requests on and closes
            before the answer; ``fail`` answers 503 itself.
    """

    def __init__(self, port: int) -> None:
        self.delay, self.mode, self._target = 0.0, "open", port
        self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.mode == "refuse":
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                first = client.recv(65536)
                if not first:
                    return
                self.requests += 1
                if self.mode == "fail":
                    client.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
                    return
                time.sleep(self.delay)
                with socket.create_connection(("127.0.0.1", self._target)) as server:
                    server.sendall(first)
                    if self.mode == "cut":
                        server.settimeout(2)
                        server.recv(1)
                        return
                    back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                    back.start()
                    while data := client.recv(65536):
                        if self.mode != "open":
                            return
                        self.requests += 1
                        time.sleep(self.delay)
                        server.sendall(data)
                    server.shutdown(socket.SHUT_WR)
                    back.join()
            except OSError:
                return


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
