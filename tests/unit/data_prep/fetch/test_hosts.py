"""Politeness, measured on the side of the servers."""

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from data_prep.config import DownloadConfig
from data_prep.fetch import hosts
from data_prep.fetch.client import Fetcher
from data_prep.fetch.failures import FetchError
from data_prep.fetch.hosts import HostQueue, Turns
from data_prep.ports import free_port
from data_prep.schema import Status
from tests.helpers.hostile_web import after, in_turn, response, silent, together

BOTH = {"allow_private_hosts": ["127.0.0.2", "127.0.0.3"], "timeout_seconds": 10}


@pytest.mark.parametrize("per_host", [1, 3])
def test_a_host_never_has_more_than_its_requests(web, fetch_all, per_host):
    web.pages["/"] = together(per_host, response(), by_address=True)
    urls = [web.url(f"/?{i}", a) for i in range(12) for a in web.addresses]
    found = fetch_all(urls, per_host=per_host, **BOTH)
    assert {f.status for f in found} == {Status.OK}
    assert web.busiest == {"127.0.0.2": per_host, "127.0.0.3": per_host}


@pytest.mark.parametrize("robots", ["obey", "ignore"])
def test_all_hosts_together_have_no_more_than_the_concurrency(web, fetch_all, robots):
    web.pages["/"] = together(3, response())
    urls = [web.url(f"/?{i}", a) for i in range(12) for a in web.addresses]
    fetch_all(urls, per_host=8, concurrency=3, robots=robots, **BOTH)
    starts = [(r.start, 1) for r in web.requests] + [(r.end, -1) for r in web.requests]
    busy = most = 0
    for _, step in sorted(starts):
        busy += step
        most = max(most, busy)
    assert most == 3


def test_a_slow_host_leaves_the_slots_to_the_others(web, fetch_all):
    """10 rows of a slow host come first; its 2 turns leave 6 of 8 slots to the fast one, which ends first."""

    async def slow(request):
        while len(web.paths("127.0.0.3")) < 40:
            await asyncio.sleep(0.01)
        request.writer.write(response())

    web.pages |= {("127.0.0.2", "/"): slow, ("127.0.0.3", "/"): response()}
    urls = [web.url(f"/?{i}", "127.0.0.2") for i in range(10)]
    urls += [web.url(f"/?{i}", "127.0.0.3") for i in range(40)]
    found = fetch_all(urls, per_host=2, concurrency=8, **BOTH)
    assert {f.status for f in found} == {Status.OK}


def test_connections_are_kept_alive(web, fetch_all):
    web.pages["/"] = response()
    fetch_all([web.url(f"/?{i}") for i in range(50)], per_host=2)
    assert web.connections["127.0.0.2"] <= 2


def test_a_short_wait_is_kept_by_all_rows_of_the_host(web, fetch_all):
    busy = response(b"", code=429, headers=("Retry-After: 1",))
    web.pages["/"] = in_turn(busy, response())
    urls = [web.url(f"/?{i}") for i in range(8)]
    found = fetch_all(urls, per_host=1, retries=1, timeout_seconds=10)
    assert {f.status for f in found} == {Status.OK}
    first, *rest = (r for r in web.requests if r.path != "/robots.txt")
    assert min(r.start for r in rest) - first.end > 0.95


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_long_wait_ends_all_rows_of_the_host_at_once(web, fetch_all, form):
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    wait = "3600" if form == "seconds" else date
    web.pages["/"] = response(b"", code=503, headers=(f"Retry-After: {wait}",))
    web.pages["127.0.0.3", "/"] = response()
    urls = [web.url(f"/?{i}") for i in range(20)] + [web.url("/", "127.0.0.3")]
    start = time.monotonic()
    *found, other = fetch_all(urls, per_host=2, retries=3, **BOTH)
    assert time.monotonic() - start < 60
    assert {f.status for f in found} == {Status.HTTP_ERROR} and all(f.transient for f in found)
    assert all(3500 < f.retry_after <= 3600 for f in found)
    assert "the host asked to be left alone, for 3" in found[-1].error
    assert len(web.paths("127.0.0.2")) <= 2 and other.status is Status.OK


def test_waits_add_up_to_the_patience_and_not_more(web, fetch_all):
    web.pages["/"] = response(b"", code=429, headers=("Retry-After: 1",))
    start = time.monotonic()
    urls = [web.url(f"/?{i}") for i in range(30)]
    found = fetch_all(urls, per_host=1, retries=0, pass_wait_seconds=1.5, timeout_seconds=10)
    assert time.monotonic() - start < 60
    assert {f.status for f in found} == {Status.HTTP_ERROR} and all(f.transient for f in found)
    assert len(web.paths()) == 2


def test_a_host_that_complains_gets_half_as_many(web, fetch_all):
    web.pages |= {"/busy": response(b"", code=503), "/": after(0.05, response())}
    fetch_all([web.url("/busy")] + [web.url(f"/?{i}") for i in range(20)], per_host=4, **BOTH)
    late = sorted((r for r in web.requests if r.path != "/robots.txt"), key=lambda r: r.start)[8:]
    moments = [r.start + 0.001 for r in late]
    assert max(sum(r.start <= m < r.end for r in late) for m in moments) <= 2


def test_a_host_that_is_down_is_given_up_and_others_are_not(web, fetch_all):
    web.pages["/"] = response()
    down = f"http://127.0.0.2:{free_port()}/"
    settings = BOTH | {"robots": "ignore", "per_host": 1}
    *found, up = fetch_all([f"{down}?{i}" for i in range(20)] + [web.url("/")], **settings)
    assert {f.status for f in found} == {Status.CONNECTION} and all(f.transient for f in found)
    given_up = [f for f in found if "given up for now" in f.error]
    assert len(given_up) == 20 - hosts.FAILURES_IN_A_ROW
    assert given_up[0].error.startswith(
        "the host failed 5 times in a row and is given up for now: "
    )
    assert up.status is Status.OK


def test_a_host_that_says_nothing_costs_a_few_timeouts(web, fetch_all):
    web.pages["/"] = silent()
    found = fetch_all(
        [web.url(f"/?{i}") for i in range(200)], per_host=8, robots="ignore", idle_seconds=0.4
    )
    assert {f.status for f in found} == {Status.TIMEOUT}
    assert len(web.paths()) <= 16


def test_a_later_pass_asks_it_once_more(web, monkeypatch):
    monkeypatch.setattr(hosts, "GIVEN_UP_SECONDS", 3.0)
    web.pages["/"] = in_turn(*[silent()] * 5, response())

    async def run():
        config = DownloadConfig(
            **{"allow_private_hosts": ["127.0.0.2"], "robots": "ignore", "retries": 0},
            **{"per_host": 1, "idle_seconds": 1.0},
        )
        async with Fetcher(config) as fetcher:
            first = [await fetcher.fetch(web.url(f"/?{i}")) for i in range(7)]
            await asyncio.sleep(3.1)
            return first, await fetcher.fetch(web.url("/")), await fetcher.fetch(web.url("/"))

    first, *later = asyncio.run(run())
    assert Counter(f.status for f in first) == {Status.TIMEOUT: 7}
    assert [f.status for f in later] == [Status.OK] * 2


def test_rows_that_no_longer_wait_leave_no_turn_behind():
    async def run():
        turns = Turns(3)
        queue = HostQueue(turns, 1, 0)
        await queue.enter()
        waits = [asyncio.create_task(queue.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waits[0].cancel()
        queue.leave()  # to the second: the first is gone
        waits[1].cancel()  # just as its turn has come
        await asyncio.gather(*waits[:2], return_exceptions=True)
        await asyncio.wait_for(waits[2], 1)
        queue.leave()
        return turns.free

    assert asyncio.run(run()) == 3


def test_a_wait_that_begins_while_rows_queue_holds_for_them():
    async def run():
        queue = HostQueue(Turns(3), 1, 0)
        await queue.enter()
        waits = asyncio.create_task(queue.enter())
        await asyncio.sleep(0)
        queue.complain(60.0)
        queue.complain(30.0)  # shorter than what it has asked for already
        queue.leave()
        with pytest.raises(FetchError, match="left alone, for 60 s from now") as error:
            await waits
        assert error.value.retry_after > 59

    asyncio.run(run())
