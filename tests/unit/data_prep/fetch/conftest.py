import asyncio

import pytest

from data_prep.config import DownloadConfig
from data_prep.fetch import names, robots
from data_prep.fetch.client import Fetcher
from tests.helpers.hostile_web import HostileWeb

LIMITS = {
    "allow_private_hosts": ["127.0.0.2"],
    "retries": 0,
    "max_bytes": 100_000,
    "timeout_seconds": 20,
    "idle_seconds": 10,
}


@pytest.fixture(autouse=True)
def _forgetful():
    """What the process remembers of hosts must not go from test to test: ports come again."""
    robots.process_cache.clear()
    names.process_cache.clear()


@pytest.fixture
def web():
    with HostileWeb("127.0.0.2", "127.0.0.3") as web:
        yield web


@pytest.fixture
def fetch_all():
    """Fetches URLs, all at once, with one fetcher; 127.0.0.2 alone is allowed."""

    def fetch_all(urls, **settings):
        async def run():
            async with Fetcher(DownloadConfig(**(LIMITS | settings))) as fetcher:

                async def one(url):
                    fetched = await fetcher.fetch(url)
                    await fetcher.release(fetched)
                    return fetched

                return await asyncio.gather(*(one(url) for url in urls))

        return asyncio.run(run())

    return fetch_all


@pytest.fixture
def fetch(fetch_all):
    return lambda url, **settings: fetch_all([url], **settings)[0]
