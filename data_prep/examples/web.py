"""A small web on loopback that serves a folder of scenes, with the troubles of the real one.

    python -m data_prep.examples.web FOLDER --port 8123

The first part of the path says what happens: /dead/... is not there, /html/... is a web page,
/slow/... drips its body, /redirect/... points on to the file, /flaky/... fails the first two times it
is asked for, anything else is the file itself.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from data_prep.ports import LOOPBACK, free_port
from data_prep.python_path import python_path

SLOW_SECONDS = 1.5  # of a whole body under /slow/
FLAKY_FAILURES = 2  # of a file under /flaky/
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

    asked: Counter = Counter()

    async def flaky(request: web.Request) -> web.StreamResponse:
        asked[request.path_qs] += 1
        if asked[request.path_qs] <= FLAKY_FAILURES:
            raise web.HTTPServiceUnavailable()
        return web.FileResponse(find(request))

    async def plain(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(find(request))

    async def alive(request: web.Request) -> web.StreamResponse:
        return web.Response(text="roseate scene web")

    app = web.Application()
    app.router.add_get("/", alive)
    app.router.add_get("/dead/{path:.*}", dead)
    app.router.add_get("/html/{path:.*}", html)
    app.router.add_get("/slow/{path:.*}", slow)
    app.router.add_get("/flaky/{path:.*}", flaky)
    app.router.add_get("/redirect/{path:.*}", redirect)
    app.router.add_get("/{path:.*}", plain)
    return app


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
        self._process = subprocess.Popen(
            [sys.executable, "-m", "data_prep.examples.web", str(self.folder)]
            + ["--port", str(self.port)],
            env=os.environ | {"PYTHONPATH": python_path()},
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
