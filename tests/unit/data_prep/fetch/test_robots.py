import gzip
from collections import Counter

import pytest
from yarl import URL

from data_prep.fetch import robots
from data_prep.fetch.robots import RobotsCache
from data_prep.fetch.robots_rules import RobotsRules
from data_prep.schema import Status
from tests.helpers.hostile_web import after, closing, endless, in_turn, redirect, response, silent

FORBIDDING = b"User-agent: *\nDisallow: /private\n"


@pytest.fixture
def site(web):
    web.pages |= {"/a": response(), "/private": response()}
    return web


def asked(web):
    return sum(r.path == "/robots.txt" for r in web.requests)


def test_robots_txt_is_obeyed_and_asked_for_once_per_site(site, fetch_all):
    site.pages["/robots.txt"] = after(0.1, response(FORBIDDING))
    urls = [site.url(f"/a?{i}") for i in range(20)] + [site.url(f"/private?{i}") for i in range(20)]
    found = fetch_all(urls, timeout_seconds=5)
    assert Counter(f.status for f in found) == {Status.OK: 20, Status.REFUSED_ROBOTS: 20}
    assert found[-1].error == f"{site.url('/robots.txt')} leaves it out" and not found[-1].transient
    assert fetch_all(urls[:1])[0].status is Status.OK  # another shard of the process
    assert asked(site) == 1
    assert not [p for p in site.paths() if p.startswith("/private")]


def test_it_may_be_ignored(site, fetch):
    site.pages["/robots.txt"] = response(FORBIDDING)
    assert fetch(site.url("/private"), robots="ignore").status is Status.OK
    assert asked(site) == 0


def test_rules_for_our_own_name(site, fetch):
    site.pages["/robots.txt"] = response(b"User-agent: picky\nDisallow: /")
    assert fetch(site.url("/a"), user_agent="Picky").status is Status.REFUSED_ROBOTS
    assert fetch(site.url("/a"), user_agent="other").status is Status.OK


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 451])
def test_a_site_without_rules_allows_all(site, fetch, code):
    site.pages["/robots.txt"] = response(FORBIDDING, code=code)
    assert fetch(site.url("/private")).status is Status.OK


@pytest.mark.parametrize(
    "page",
    [
        response(b"", code=500),
        response(b"", code=503),
        response(b"", code=429),
        silent(),
        closing(b""),
        closing(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nUser"),
        closing(b"garbage\r\n\r\n"),
        response(b"x", headers=("Content-Encoding: br",)),
        redirect("ftp://a.example/robots.txt"),
        redirect("http://127.0.0.3/robots.txt"),
    ],
)
def test_a_site_that_does_not_tell_its_rules_forbids_all_for_now(site, fetch_all, page):
    site.pages["/robots.txt"] = page
    found = fetch_all([site.url(f"/a?{i}") for i in range(5)], idle_seconds=0.5)
    assert {f.status for f in found} == {Status.ROBOTS_UNREACHABLE}
    assert all(f.transient and f.error.startswith(site.url("/robots.txt")) for f in found)
    # Of a connection that was closed aiohttp tries another by itself.
    assert site.paths() == [] and asked(site) <= 2
    assert site.connections["127.0.0.3"] == 0


def test_what_passes_is_tried_again(site, fetch):
    site.pages["/robots.txt"] = in_turn(response(b"", code=500), response(FORBIDDING))
    assert fetch(site.url("/a"), retries=1).status is Status.OK


def test_a_later_shard_asks_again(site, fetch):
    site.pages["/robots.txt"] = in_turn(response(b"", code=500), response(FORBIDDING))
    assert fetch(site.url("/a")).status is Status.ROBOTS_UNREACHABLE
    assert fetch(site.url("/a")).status is Status.OK


def test_a_later_pass_asks_again(site, fetch_all, monkeypatch):
    monkeypatch.setattr(robots, "FAILED_SECONDS", 0.0)
    site.pages["/robots.txt"] = in_turn(response(b"", code=500), response(FORBIDDING))
    found = fetch_all([site.url("/a?1"), site.url("/a?2")])
    assert [f.status for f in found] == [Status.ROBOTS_UNREACHABLE, Status.OK]


def test_a_host_that_is_not_there_says_so_itself(fetch, fetch_all, web):
    assert fetch("http://no-such-host.invalid/a").status is Status.DNS
    assert fetch(web.url("/a", "127.0.0.3")).status is Status.REFUSED_PRIVATE_ADDRESS


def test_redirects_of_robots_txt(site, fetch):
    site.pages |= {"/r": response(FORBIDDING), "/robots.txt": redirect("/r")}
    assert fetch(site.url("/private")).status is Status.REFUSED_ROBOTS


def test_too_many_redirects_are_no_rules(site, fetch):
    site.pages["/robots.txt"] = redirect("/robots.txt")
    assert fetch(site.url("/private")).status is Status.OK
    assert asked(site) == 6


def test_hosts_whose_robots_txt_point_at_each_other_do_not_hang(site, fetch_all):
    both = {"allow_private_hosts": ["127.0.0.2", "127.0.0.3"], "per_host": 1}
    for one, other in (("127.0.0.2", "127.0.0.3"), ("127.0.0.3", "127.0.0.2")):
        site.pages[one, "/robots.txt"] = redirect(site.url("/robots.txt", other))
    found = fetch_all([site.url("/a"), site.url("/a", "127.0.0.3")], **both)
    assert [f.status for f in found] == [Status.OK] * 2


def test_hosts_that_redirects_lead_to_have_rules_too(site, fetch):
    site.pages["127.0.0.2", "/to"] = redirect(site.url("/private", "127.0.0.3"))
    site.pages["127.0.0.3", "/robots.txt"] = response(FORBIDDING)
    fetched = fetch(site.url("/to"), allow_private_hosts=["127.0.0.0/8"])
    assert fetched.status is Status.REFUSED_ROBOTS
    assert site.paths("127.0.0.3") == []


def test_half_a_megabyte_is_read(site, fetch):
    line = b"# nothing to see\n"
    text = b"User-agent: *\nDisallow: /private\n" + line * 40_000 + b"Disallow: /a\n"
    site.pages["/robots.txt"] = response(text)
    assert fetch(site.url("/a")).status is Status.OK
    assert fetch(site.url("/private")).status is Status.REFUSED_ROBOTS


def test_one_without_end_is_read_so_far(site, fetch):
    start = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + FORBIDDING
    site.pages["/robots.txt"] = endless(start, b"# nothing\n" * 1000)
    assert fetch(site.url("/private")).status is Status.REFUSED_ROBOTS


def test_one_that_comes_compressed(site, fetch):
    packed = gzip.compress(FORBIDDING)
    site.pages["/robots.txt"] = response(packed, headers=("Content-Encoding: gzip",))
    assert fetch(site.url("/private")).status is Status.REFUSED_ROBOTS


def test_a_delay_means_one_at_a_time(site, fetch_all):
    site.pages["/robots.txt"] = response(b"User-agent: *\nCrawl-delay: 1\n")
    site.pages["/slow"] = after(0.02, response())
    found = fetch_all([site.url(f"/slow?{i}") for i in range(6)])
    assert {f.status for f in found} == {Status.OK}
    assert site.busiest["127.0.0.2"] == 1


def test_the_cache_is_bounded_in_number_and_in_memory():
    def rules(count):
        return RobotsRules("User-agent: *\n" + "Disallow: /x\n" * count, "roseate")

    def key(i):
        return URL(f"http://{i}.example"), "roseate"

    cache = RobotsCache(sites=3, total_bytes=100_000)
    for i in range(5):
        cache.put(key(i), float("inf"), rules(1))
    assert [i for i in range(5) if cache.get(key(i))] == [2, 3, 4]
    cache.get(key(2))
    cache.put(key(5), float("inf"), rules(140))
    cache.put(key(5), float("inf"), rules(140))  # put again, it is not counted twice
    assert [i for i in range(6) if cache.get(key(i))] == [2, 4, 5]
    cache.put(key(6), float("inf"), rules(150))
    assert [i for i in range(7) if cache.get(key(i))] == [6]
    cache.put(key(7), 0.0, rules(1))
    assert cache.get(key(7)) is None
