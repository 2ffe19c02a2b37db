import asyncio

import pytest
from aiohttp import web

from data_prep.config import FetchConfig
from data_prep.examples.web import free_port
from data_prep.fetch import Fetcher, is_public
from data_prep.schema import Status

LOCAL = {"allow_private_hosts": ["127.0.0.1"], "retries": 0}


def fetch(url, **settings):
    async def run():
        async with Fetcher(FetchConfig(**settings)) as fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(run())


def fetch_from(handler, path="/", **settings):
    """Fetches from a server of one handler that runs in the same loop."""

    async def run():
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            async with Fetcher(FetchConfig(**(LOCAL | settings))) as fetcher:
                return await fetcher.fetch(f"http://127.0.0.1:{port}{path}")
        finally:
            await runner.cleanup()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("laion/000000.jpg", Status.OK),
        ("redirect/laion/000000.jpg", Status.OK),
        ("slow/laion/000000.jpg", Status.OK),
        ("dead/laion/000000.jpg", Status.HTTP_404),
        ("html/laion/000000.jpg", Status.WRONG_CONTENT_TYPE),
    ],
)
def test_the_troubles_of_the_scene_web(scene_web, path, status):
    fetched = fetch(f"{scene_web.base_url}/{path}", **LOCAL)
    assert fetched.status is status
    plain = (scene_web.folder / "laion/000000.jpg").read_bytes()
    assert fetched.body == (plain if status is Status.OK else b"")


def test_a_redirect_is_followed_to_its_final_url(scene_web):
    fetched = fetch(f"{scene_web.base_url}/redirect/laion/000000.jpg", **LOCAL)
    assert fetched.final_url == f"{scene_web.base_url}/laion/000000.jpg"


def test_the_time_limit_covers_the_body(scene_web):
    fetched = fetch(f"{scene_web.base_url}/slow/laion/000000.jpg", **LOCAL, timeout_seconds=0.4)
    assert (fetched.status, fetched.body) == (Status.TIMEOUT, b"")
    assert fetched.error == "took longer than 0.4 s"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/a.jpg",
        "http://0x7f.1/a.jpg",
        "http://localhost/a.jpg",
        "http://[::1]/a.jpg",
        "http://[::ffff:10.0.0.1]/a.jpg",
        "http://169.254.169.254/latest/meta-data",
        "http://10.1.2.3/a.jpg",
    ],
)
def test_private_addresses_are_refused(url):
    fetched = fetch(url, retries=0)
    assert fetched.status is Status.REFUSED_PRIVATE_ADDRESS
    assert "is not a public address" in fetched.error
    assert "ingest.fetch.allow_private_hosts" in fetched.error


def test_a_redirect_to_a_private_address_is_refused():
    async def handler(request):
        raise web.HTTPFound("http://169.254.169.254/secret")

    assert fetch_from(handler).status is Status.REFUSED_PRIVATE_ADDRESS


def test_a_redirect_to_a_file_is_refused():
    async def handler(request):
        return web.Response(status=302, headers={"Location": "file:///etc/passwd"})

    fetched = fetch_from(handler)
    assert fetched.status is Status.REFUSED_SCHEME
    assert fetched.error == "only http and https are fetched, not 'file'"


def test_is_public_sees_through_wrapped_addresses():
    assert is_public("1.1.1.1")
    assert is_public("2606:4700:4700::1111")
    private = ["0.0.0.0", "100.64.0.1", "192.168.1.1", "224.0.0.1", "fe80::1%eth0", "fc00::1"]
    private += ["::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]
    assert [a for a in private if is_public(a)] == []


@pytest.mark.parametrize(
    ("url", "status", "error"),
    [
        ("ftp://example.com/a.jpg", Status.REFUSED_SCHEME, "not 'ftp'"),
        ("data:image/png;base64,AAAA", Status.REFUSED_SCHEME, "not 'data'"),
        ("no address at all", Status.REFUSED_SCHEME, "not ''"),
        ("http:///a.jpg", Status.INVALID_URL, "not a usable URL"),
        ("http://[half/a.jpg", Status.INVALID_URL, "not a usable URL"),
        ("http://2130706433/a.jpg", Status.INVALID_URL, "not a canonical IPv4 address"),
        ("http://no-such-host.invalid/a.jpg", Status.DNS, "no-such-host.invalid"),
    ],
)
def test_addresses_that_cannot_be_fetched(url, status, error):
    fetched = fetch(url, retries=0)
    assert fetched.status is status
    assert error in fetched.error


def test_nobody_listens():
    fetched = fetch(f"http://127.0.0.1:{free_port()}/", **LOCAL)
    assert fetched.status is Status.CONNECTION
    assert "ClientConnectorError" in fetched.error


def test_redirects_end():
    async def handler(request):
        raise web.HTTPFound("/again")

    fetched = fetch_from(handler, max_redirects=3)
    assert (fetched.status, fetched.error) == (Status.TOO_MANY_REDIRECTS, "more than 3 redirects")


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_not_read(announced):
    async def handler(request):
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        if announced:
            response.content_length = 300_000
        await response.prepare(request)
        await response.write(b"x" * 300_000)
        return response

    fetched = fetch_from(handler, max_bytes=100_000)
    assert fetched.status is Status.TOO_MANY_BYTES
    assert "more than 100000" in fetched.error
    assert fetched.body == b"" and fetched.reserved_bytes == 0


def test_transient_failures_are_tried_again_and_others_are_not():
    codes = [503, 403]
    seen = []

    async def handler(request):
        seen.append(request.headers["User-Agent"])
        return web.Response(status=codes[len(seen) - 1])

    fetched = fetch_from(handler, retries=5, user_agent="roseate test")
    assert (fetched.status, fetched.error) == (Status.HTTP_ERROR, "the server answered 403")
    assert seen == ["roseate test"] * 2


def test_gone_is_not_found():
    async def handler(request):
        return web.Response(status=410)

    assert fetch_from(handler).status is Status.HTTP_404


def test_an_octet_stream_is_taken():
    async def handler(request):
        return web.Response(body=b"abc", content_type="application/octet-stream")

    assert fetch_from(handler).body == b"abc"


def test_bodies_share_a_budget_without_deadlock(monkeypatch):
    monkeypatch.setattr("data_prep.fetch._BUFFER_BYTES", 1000)

    async def handler(request):
        return web.Response(body=b"x" * 600, content_type="image/png")

    async def run():
        app = web.Application()
        app.router.add_get("/", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        async with Fetcher(FetchConfig(**LOCAL)) as fetcher:

            async def one():
                fetched = await fetcher.fetch(url)
                await fetcher.release(fetched)
                return len(fetched.body)

            sizes = await asyncio.gather(*(one() for _ in range(8)))
        await runner.cleanup()
        return sizes

    assert asyncio.run(run()) == [600] * 8
