"""What the guard, robots.txt, opt-outs and politeness cost a fetch, against a fetcher without any of
them and against a bare aiohttp loop.

    python -m benchmarks.ingest_fetch [--quick] [--pairs N] [--bytes N] [--clock cpu|wall]
        [--json PATH] [--markdown PATH]

nginx serves one small file on four addresses of loopback, each a host of its own; connections are kept
alive. A measurement is a shard of 1,000 rows with an asyncio loop of its own, its start and end and the
robots.txt of the four hosts included; the contenders take turns in one process. Time is that of this
process, so that a core's requests per second come out and nginx's own time does not count.

`without safety` is the same fetcher with the limits on bytes and time, the statuses and the tries,
and with neither address checks nor robots.txt, X-Robots-Tag, turns at a host, or a count of failures.
"""

import argparse
import asyncio
import gc
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from yarl import URL

from benchmarks.figures import Figure, Pairs, parser, seconds, write
from data_prep.config import DownloadConfig
from data_prep.fetch.client import Fetcher
from data_prep.fetch.hosts import Origin
from data_prep.fetch.robots import Receiver, process_cache
from data_prep.ports import free_port
from data_prep.schema import Status

HOSTS = [f"127.0.0.{i}" for i in range(2, 6)]
CONCURRENCY, SHARD_ROWS = 64, 1000
GOAL = 1.05
ROBOTS = """\
User-agent: *
Disallow: /wp-admin/
Allow: /wp-admin/admin-ajax.php
Disallow: /search
Disallow: /*.php$
Sitemap: https://example.org/sitemap.xml
"""
NGINX = """\
daemon off; master_process off; pid {folder}/pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000; sendfile on; tcp_nopush on; types {{ image/jpeg jpg; }}
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ {listen} root {folder}; }}
}}
"""


@contextmanager
def serving(size: int) -> Iterator[str]:
    """nginx with a file of that many bytes; yields the path of the URL."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "robots.txt").write_text(ROBOTS)
        (folder / "image.jpg").write_bytes(b"\xff\xd8\xff" + bytes(size - 3))
        listen = " ".join(f"listen {host}:{port};" for host in HOSTS)
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, listen=listen))
        server = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")])
        try:
            time.sleep(0.5)
            if server.poll() is not None:
                raise RuntimeError(f"nginx ended with {server.returncode}")
            yield f":{port}/image.jpg"
        finally:
            server.terminate()
            server.wait()


class WithoutSafety(Fetcher):
    """The fetcher, less all that keeps others and us from harm."""

    async def __aenter__(self) -> "WithoutSafety":
        await super().__aenter__()
        guarded = self._session._connector
        self._session._connector = aiohttp.TCPConnector(limit=0)
        self._session._request_class = aiohttp.ClientRequest
        await guarded.close()
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._everywhere = self._hosts.add(URL("http://everywhere.example"))
        return self

    def _origin(self, url: URL) -> Origin:
        return self._everywhere

    async def _in_turn(self, url: URL, origin: Origin, row: Receiver) -> URL | None:
        async with self._slots:
            return await self._exchange(url, origin, row)


def config(**changes: object) -> DownloadConfig:
    """As in a real ingest, but for loopback."""
    return DownloadConfig(
        **{"concurrency": CONCURRENCY, "allow_private_hosts": ["127.0.0.0/8"], **changes}
    )


async def by_fetcher(fetcher: Fetcher, urls: list[str]) -> None:
    """All rows at once, as the shard maker gives them."""

    async def one(url: str) -> None:
        fetched = await fetcher.fetch(url)
        if fetched.status is not Status.OK:
            raise RuntimeError(f"{url}: {fetched}")
        await fetcher.release(fetched)

    async with fetcher:
        await asyncio.gather(*(one(url) for url in urls))


async def safe(urls: list[str]) -> None:
    """With everything on."""
    await by_fetcher(Fetcher(config()), urls)


async def unsafe(urls: list[str]) -> None:
    """With everything off."""
    await by_fetcher(WithoutSafety(config(robots="ignore", opt_out_directives=[])), urls)


async def bare(urls: list[str]) -> None:
    """The shortest loop that aiohttp's documentation leads to."""
    left = iter(urls)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for url in left:
                async with session.get(url) as response:
                    await response.read()

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


CONTENDERS: dict[str, Callable[[list[str]], Awaitable[None]]] = {
    "safe": safe,
    "without safety": unsafe,
    "bare aiohttp": bare,
}


def measure(args: argparse.Namespace) -> list[Figure]:
    """One shard each in turn, from another contender on each time: the machine's moods fall on all."""
    taken: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    names = list(CONTENDERS)
    gc.collect()
    gc.freeze()  # torch's half a million objects are not there in a worker to be gone through
    with serving(args.bytes) as path:
        urls = [f"http://{HOSTS[i % len(HOSTS)]}{path}?row={i}" for i in range(SHARD_ROWS)]
        for turn in range(-1, args.pairs):  # the first round warms up
            for i in range(len(names)):
                name = names[(i + turn) % len(names)]
                process_cache.clear()
                spent = seconds(lambda name=name: asyncio.run(CONTENDERS[name](urls)), args)
                if turn >= 0:
                    taken[name].append(spent / SHARD_ROWS * 1e6)
    for name, found in taken.items():
        middle = sorted(found)[len(found) // 2]
        print(f"{name}: {1e6 / middle:,.0f} requests/s per core", file=sys.stderr)
    ours = taken["safe"]
    return [
        Pairs(ours, taken["without safety"]).figure(
            "a fetch, safe / without safety", "us per request", GOAL
        ),
        Pairs(ours, taken["bare aiohttp"]).figure("a fetch, safe / bare aiohttp", "us per request"),
    ]


def main() -> None:
    """Measure and write."""
    command = parser("what safety costs a fetch, on loopback")
    command.set_defaults(clock="cpu")
    command.add_argument("--pairs", type=int, help="shards of each (default: 60; quick: 20)")
    command.add_argument("--bytes", type=int, default=20_000, help="of the file (default: 20000)")
    args = command.parse_args()
    if shutil.which("nginx") is None:
        command.error("needs nginx (Debian: apt-get install nginx-light)")
    args.pairs = args.pairs or (20 if args.quick else 60)
    write(measure(args), args)


if __name__ == "__main__":
    main()
