"""Everything a server can do to us ends in the right status, within bounds."""

import asyncio
import resource
import tracemalloc

import pytest

from data_prep.config import DownloadConfig
from data_prep.fetch.client import Fetcher
from data_prep.schema import Status
from tests.helpers.hostile_pages import bomb, hostile_pages
from tests.helpers.hostile_web import HostileWeb, endless, response

PAGES = hostile_pages()


def test_each_hostile_page_ends_in_its_status(web, fetch_all):
    web.pages |= {path: page for path, (page, _) in PAGES.items()}
    found = fetch_all(
        [web.url(path) for path in PAGES], per_host=64, timeout_seconds=8, idle_seconds=4
    )
    ended = {path: (str(f.status), f.error) for path, f in zip(PAGES, found, strict=True)}
    wrong = {p: ended[p] for p, (_, status) in PAGES.items() if ended[p][0] != status}
    assert not wrong
    assert web.connections["127.0.0.3"] == 0
    for fetched in found:
        assert (fetched.status is Status.OK) == (fetched.error == "")
        assert fetched.seconds < 60


def test_what_may_pass_is_transient_and_what_stays_is_not(web, fetch_all):
    pages = {path: page for path, (page, _) in PAGES.items()}
    passing = ["/body/short", "/body/silent", "/head/silent", "/closes-at-once", "/code/500"]
    staying = ["/code/404", "/code/403", "/type/html", "/opt-out", "/to/file", "/to/private"]
    staying += ["/gzip/bomb", "/body/broken-chunk", "/to/itself", "/good"]
    web.pages |= pages
    found = fetch_all([web.url(path) for path in passing + staying], idle_seconds=3)
    assert [f.transient for f in found] == [True] * len(passing) + [False] * len(staying)


def test_a_bomb_takes_no_more_than_the_limit(web, fetch):
    web.pages["/bomb"] = response(bomb(64), headers=("Content-Encoding: gzip",))
    fetch(web.url("/bomb"))  # what is imported and cached once
    tracemalloc.start()
    try:
        fetched = fetch(web.url("/bomb"), max_bytes=4 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fetched.status is Status.TOO_MANY_BYTES
    assert peak < 12 << 20  # 4 MiB of pieces, one more of 1 MiB, the compressed body, the server


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a" * 65536),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n" * 1000),
    ],
)
def test_a_flood_of_heads_takes_little_memory_and_time(web, fetch, start, piece):
    web.pages["/flood"] = endless(start, piece)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fetched = fetch(web.url("/flood"), timeout_seconds=120, idle_seconds=60)
    assert fetched.status is Status.MALFORMED_RESPONSE
    assert fetched.seconds < 100  # not by the limit of time
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 64 << 10


def test_an_answer_too_many_is_not_taken_for_the_next_row(web, fetch_all):
    async def page(request):
        request.writer.write(response(b"mine") + response(b"poison"))

    web.pages["/"] = page
    found = fetch_all([web.url(f"/?{i}") for i in range(20)], per_host=1)
    assert {f.body for f in found} == {b"mine"}


def test_an_answer_on_an_idle_connection_is_not_taken_for_the_next_row(web):
    async def page(request):
        request.writer.write(response(b"mine"))
        await request.writer.drain()
        await asyncio.sleep(0.02)
        request.writer.write(response(b"poison", code=408))

    async def run():
        config = DownloadConfig(allow_private_hosts=["127.0.0.2"], retries=0, robots="ignore")
        async with Fetcher(config) as fetcher:
            first = await fetcher.fetch(web.url("/a"))
            await asyncio.sleep(0.2)
            return [first, await fetcher.fetch(web.url("/b"))]

    web.pages |= {"/a": page, "/b": response(b"mine")}
    assert [f.body for f in asyncio.run(run())] == [b"mine", b"mine"]
    assert web.connections["127.0.0.2"] == 2


def test_a_page_of_each_kind_leaves_nothing_open(fetch_all):
    """Not one connection is left behind by what was cut off."""
    with HostileWeb("127.0.0.2") as web:
        web.pages |= {path: page for path, (page, _) in PAGES.items()}
        fetch_all([web.url(p) for p in PAGES if "drip" not in p and "silent" not in p], per_host=8)
        assert web.busiest["127.0.0.2"] <= 8
