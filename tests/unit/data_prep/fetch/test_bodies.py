import asyncio
import gzip
import secrets
import zlib

import pytest

from data_prep.config import DownloadConfig
from data_prep.fetch import client
from data_prep.fetch.bodies import ByteBudget, Inflater, Reservation
from data_prep.fetch.client import Fetcher
from data_prep.fetch.failures import FetchError
from data_prep.schema import Status
from tests.helpers.hostile_web import after, closing, response


def inflate(data, step):
    undo = Inflater()
    pieces = [p for i in range(0, len(data), step) for p in undo.feed(data[i : i + step])]
    undo.check_end()
    return pieces


def raw(data):
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw])
@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_compression_is_undone_in_small_pieces(pack, step):
    data = secrets.token_bytes(3000) + bytes(5 << 20)
    pieces = inflate(pack(data), step)
    assert b"".join(pieces) == data and max(map(len, pieces)) <= 1 << 20


def test_what_follows_the_end_or_lacks_it():
    packed = gzip.compress(b"abc")
    with pytest.raises(FetchError, match="data behind the end of the compressed body"):
        inflate(packed + packed, 7)
    with pytest.raises(FetchError, match="its compression goes on") as error:
        inflate(packed[:-1], 7)
    assert error.value.status is Status.CONNECTION and error.value.transient
    broken = bytearray(gzip.compress(secrets.token_bytes(100_000)))
    broken[50_000:50_100] = bytes(100)
    with pytest.raises(FetchError, match="not compressed as it says"):
        inflate(bytes(broken), 1000)


async def limited(work):
    """Awaits what `work` makes of a limit of its own, as each request has one."""
    async with asyncio.timeout(60) as limit:
        return await work(limit)


def test_the_budget_is_given_in_the_order_of_asking():
    async def run():
        budget, order = ByteBudget(100), []
        held = [Reservation(budget) for _ in range(5)]

        async def take(i, count):
            await limited(lambda limit: held[i].start(count, limit))
            order.append(i)

        tasks = [asyncio.create_task(take(i, c)) for i, c in enumerate([60, 60, 10, 1000, 10])]
        while not all(t.done() for t in tasks):
            await asyncio.sleep(0.01)
            for i in order * 2:  # to end again does nothing
                held[i].end()
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_one_who_no_longer_waits_lets_others_through():
    async def run():
        budget = ByteBudget(100)
        budget.take(60)
        waits = asyncio.create_task(budget.wait(90))
        await asyncio.sleep(0)
        behind = asyncio.create_task(budget.wait(30))
        await asyncio.sleep(0)
        waits.cancel()
        await behind
        assert budget.fits(10) and not budget.fits(11)

    asyncio.run(run())


def test_bodies_that_outgrow_the_budget_go_one_by_one():
    async def run():
        budget, most, under_way = ByteBudget(100), 0, 0

        async def grow(limit):
            nonlocal most, under_way
            held = Reservation(budget)
            await held.start(50, limit)
            await held.grow(80, limit)
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.01)
            await held.grow(200, limit)
            under_way -= 1
            held.end()

        await asyncio.gather(*(limited(grow) for _ in range(6)))
        assert budget.fits(100)
        return most

    assert asyncio.run(run()) == 1


def test_waiting_for_memory_does_not_count_as_time_of_the_server(web, monkeypatch):
    monkeypatch.setattr(client, "_BUFFER_BYTES", 1000)
    web.pages |= {
        "/": response(bytes(600)),
        "/unknown": closing(response(bytes(900), length=False)),
    }

    async def run():
        config = DownloadConfig(
            allow_private_hosts=["127.0.0.2"], retries=0, timeout_seconds=4, idle_seconds=3
        )
        async with Fetcher(config) as fetcher:

            async def one(path):
                fetched = await fetcher.fetch(web.url(path))
                await asyncio.sleep(1)  # decoding
                await fetcher.release(fetched)
                return len(fetched.body)

            return await asyncio.gather(*map(one, ["/"] * 4 + ["/unknown"] * 2))

    assert asyncio.run(run()) == [600] * 4 + [900] * 2


def test_a_body_that_failed_holds_nothing(web):
    web.pages["/"] = closing(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nabc")
    web.pages["/late"] = after(0.1, response(bytes(900)))

    async def run():
        async with Fetcher(DownloadConfig(allow_private_hosts=["127.0.0.2"], retries=0)) as fetcher:
            failed = await fetcher.fetch(web.url("/"))
            empty = await fetcher.fetch(web.url("/empty"))
            return failed.held, empty.held, fetcher._budget._used

    assert asyncio.run(run()) == (None, None, 0)
