import asyncio
import socket
import time

import pytest

from data_prep.fetch import names
from data_prep.fetch.names import NameCache, Names
from tests.helpers.name_server import NameServer


def look_up(asked, nameservers=(), cache=None):
    """Results of names asked for at the same time, errors as they are."""

    async def run():
        known = Names(nameservers, cache or NameCache())
        try:
            return await asyncio.gather(*map(known.look_up, asked), return_exceptions=True)
        finally:
            await known.close()

    return asyncio.run(run())


def test_the_system_knows_localhost():
    (found,) = look_up(["localhost"])
    assert (int(socket.AF_INET), "127.0.0.1") in found


def test_names_without_address():
    (error,) = look_up(["no-such-host.invalid."])
    assert isinstance(error, OSError) and str(error).startswith(
        "[Errno None] no-such-host.invalid: "
    )


def test_chosen_servers_are_asked_at_their_port():
    with NameServer({"a.example": [["192.0.2.1", "2001:db8::1"]]}) as server:
        found, error = look_up(["a.example.", "b.example."], [server.address])
    assert set(found) == {(int(socket.AF_INET), "192.0.2.1"), (int(socket.AF_INET6), "2001:db8::1")}
    assert isinstance(error, OSError) and "b.example" in str(error)


def test_a_name_asked_for_at_once_or_again_is_looked_up_once():
    cache = NameCache()
    with NameServer({"a.example": [["192.0.2.1"]]}) as server:
        for _ in range(2):  # the second time in another loop
            assert len(set(look_up(["a.example."] * 20, [server.address], cache))) == 1
        assert server.questions["a.example", 1] == 1


def test_failures_are_remembered_briefly(monkeypatch):
    monkeypatch.setattr(names, "_FAILED_SECONDS", 2.0)
    cache = NameCache()
    with NameServer({}) as server:
        for pause in (0, 2.1, 0):
            assert isinstance(look_up(["gone.example."], [server.address], cache)[0], OSError)
            time.sleep(pause)
        # c-ares keeps what it was told too, for its own channel alone
        assert server.questions["gone.example", 1] == 2


def test_search_domains_are_not_tried():
    with NameServer({"a.example": [["192.0.2.1"]]}) as server:
        look_up(["gone.example."], [server.address])
        assert {name for name, _ in server.questions} == {"gone.example"}


def test_nobody_answers():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{deaf.getsockname()[1]}"

        async def run():
            known = Names([address], NameCache())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(known.look_up("a.example."), 0.2)
            await known.close()  # ends the look-up that others might still wait for

        asyncio.run(run())


def test_the_cache_forgets_what_is_old_and_what_is_least_used(monkeypatch):
    cache = NameCache(size=2)
    cache.put(("a",), "1", 60)
    cache.put(("b",), "2", 60)
    assert cache.get(("a",)) == "1"
    cache.put(("c",), "3", 60)
    assert [cache.get((name,)) for name in "abc"] == ["1", None, "3"]
    cache.put(("a",), "4", -1)
    assert cache.get(("a",)) is None
    cache.clear()
    assert cache.get(("c",)) is None
