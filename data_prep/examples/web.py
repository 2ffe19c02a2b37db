"""A small web on loopback that serves a folder of scenes, with the troubles of the real one.

    python -m data_prep.examples.web FOLDER --port 8123

The first part of the path says what happens: /dead/... is not there, /html/... is a web page,
/slow/... drips its body, /redirect/... points on to the file, anything else is the file itself.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

LOOPBACK = "127.0.0.1"
SLOW_SECONDS = 1.5  # of a whole body under /slow/
_START_SECONDS = 30.0


def make_app(folder: Path) -> web.Application:
    """The web of one folder."""
    folder = folder.resolve()

    def find(request: web.Request) -> Path:
        path = (folder / request.match_info["path"]).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise web.HTTPNotFound()
        return path

    async def dead(request: web.Request) -> web.StreamResponse:
        raise web.HTTPNotFound()

    async def html(request: web.Request) -> web.StreamResponse:
        return web.Response(
            text="<html><p>This domain is parked.</p></html>", content_type="text/html"
        )

    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/" + quote(request.match_info["path"]))

    async def slow(request: web.Request) -> web.StreamResponse:
        body = find(request).read_bytes()
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
        response.content_length = len(body)
        await response.prepare(request)
        steps = 5
        piece = -(-len(body) // steps)
        for start in range(0, len(body), piece):
            await asyncio.sleep(SLOW_SECONDS / steps)
            await response.write(body[start : start + piece])
        return response

    async def plain(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(find(request))

    async def alive(request: web.Request) -> web.StreamResponse:
        return web.Response(text="roseate scene web")

    app = web.Application()
    app.router.add_get("/", alive)
    app.router.add_get("/dead/{path:.*}", dead)
    app.router.add_get("/html/{path:.*}", html)
    app.router.add_get("/slow/{path:.*}", slow)
    app.router.add_get("/redirect/{path:.*}", redirect)
    app.router.add_get("/{path:.*}", plain)
    return app


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def wait_until_answers(
    url: str, process: subprocess.Popen, seconds: float = _START_SECONDS
) -> None:
    """Waits until `url` answers with any status.

    Raises:
        RuntimeError: the process ended, or nothing answered in time.
    """
    end = time.monotonic() + seconds
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the web server ended at once with exit code {process.returncode}")
        try:
            opener.open(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the web server did not answer at {url} in {seconds:.0f} seconds")


def stop(process: subprocess.Popen) -> None:
    """Ends a child process: asked first, killed if it does not listen."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class SceneWeb:
    """Serves a folder from a subprocess while the context is open.

    `base_url` is known before the start, so that tables can be written for it.
    """

    def __init__(self, folder: str | Path, port: int | None = None):
        self.folder = Path(folder)
        self.port = port or free_port()
        self.base_url = f"http://{LOOPBACK}:{self.port}"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "SceneWeb":
        # The child must find this package however the parent found it.
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "data_prep.examples.web", str(self.folder)]
            + ["--port", str(self.port)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        try:
            wait_until_answers(self.base_url, self._process)
        except BaseException:
            stop(self._process)
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a folder of scenes on loopback.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8123)
    args = parser.parse_args()
    web.run_app(make_app(args.folder), host=LOOPBACK, port=args.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
