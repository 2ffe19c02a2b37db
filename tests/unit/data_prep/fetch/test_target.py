import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from data_prep.fetch.failures import FetchError
from data_prep.fetch.target import normalize_host, normalize_target, parse_target
from data_prep.schema import Status


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "017700000001", "0x7f000001", "0177.0.0.1", "0x7f.1", "127.1"),
        *("127.0.1", "0177.0x0.0.01", "127.0.0.1.", "0X7F.0.0.1", "00000000177.0.0.1"),
        *("\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u2460\u2461\u2466.0.0.1"),
    ],
)
def test_every_spelling_of_an_address_is_that_address(host):
    assert str(parse_target(f"http://{host}:81/a")) == "http://127.0.0.1:81/a"


@given(st.ip_addresses(v=4), st.data())
def test_ipv4_in_any_parts_and_bases(address, data):
    number, count = int(address), data.draw(st.integers(1, 4))
    parts = [(number >> (24 - 8 * i)) & 255 for i in range(count - 1)]
    parts.append(number & (256 ** (5 - count) - 1))
    forms = st.sampled_from(["{}", "0x{:x}", "0x00{:X}", "0{:o}", "000{:o}"])
    host = ".".join(data.draw(forms).format(part) for part in parts)
    assert parse_target(f"http://{host}/").raw_host == str(address)


@given(st.ip_addresses(v=6))
def test_ipv6_in_any_form(address):
    for text in (address.compressed, address.exploded, address.exploded.upper()):
        assert parse_target(f"http://[{text}]/").raw_host == str(
            ipaddress.IPv6Address(int(address))
        )


@given(st.text(max_size=40))
def test_no_host_is_anything_but_a_name_or_a_canonical_address(text):
    try:
        host = parse_target(f"http://{text}/").raw_host
    except FetchError as error:
        assert error.status in (Status.INVALID_URL, Status.REFUSED_PRIVATE_ADDRESS)
        return
    assert normalize_host(host) == host and host.isascii() and "%" not in host


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (" http://A.Example/x ", "http://a.example/x"),
        ("http://a.example./x", "http://a.example/x"),
        ("http://user:secret@a.example/x", "http://a.example/x"),
        ("http://:secret@a.example/x", "http://a.example/x"),
        ("http://a.example/x?y=1#part", "http://a.example/x?y=1"),
        ("https://b\u00fccher.example/\u00fc", "https://xn--bcher-kva.example/%C3%BC"),
        ("http://a.example:80/", "http://a.example/"),
    ],
)
def test_urls_in_one_spelling(text, url):
    assert str(parse_target(text)) == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http:///a.jpg", "it names no host"),
        ("http:/127.0.0.1/a.jpg", "it names no host"),
        ("http://[half/a.jpg", "Invalid IPv6"),
        ("http://a.example:0/", "port 0"),
        ("http://a.example:99999/", "out of range"),
        ("http://256.0.0.1/", "host '256.0.0.1' is not an IPv4 address"),
        ("http://1.2.3.4.5/", "is not an IPv4 address"),
        ("http://4294967296/", "is not an IPv4 address"),
        ("http://08.0.0.1/", "is not an IPv4 address"),
        ("http://a.0x7f/", "is not an IPv4 address"),
        ("http://%31%32%37.0.0.1/", "is not an IPv4 address"),
        ("http://127.0.0.1%00.a.example/", "is neither a name nor an address"),
        ("http://a..example/", "is neither a name nor an address"),
        ("http://a.example\\@127.0.0.1/", "not a usable URL"),
        ("http://a.example/" + "a" * 9000, "characters, more than 8192"),
    ],
)
def test_unusable_urls(text, message):
    with pytest.raises(FetchError, match="^not a usable URL: ") as error:
        parse_target(text)
    assert error.value.status is Status.INVALID_URL and message in str(error.value)
    assert not error.value.transient


@pytest.mark.parametrize(
    "text",
    [
        "ftp://a.example/",
        "file:///etc/passwd",
        "data:image/png;base64,AA",
        "gopher://a/",
        "a b",
        "//a/",
    ],
)
def test_other_schemes(text):
    with pytest.raises(FetchError, match="only http and https are fetched, not") as error:
        parse_target(text)
    assert error.value.status is Status.REFUSED_SCHEME


def test_a_zone_is_of_this_machine():
    with pytest.raises(FetchError, match="is an address of a link of this machine") as error:
        parse_target("http://[fe80::1%25eth0]/")
    assert error.value.status is Status.REFUSED_PRIVATE_ADDRESS


def test_ipv6_that_is_none():
    with pytest.raises(FetchError, match="host '1::2::3'"):
        normalize_host("1::2::3")


def test_a_path_cannot_add_headers():
    url = normalize_target(URL("http://a.example/x\r\nHost: b"))
    assert "\r" not in url.raw_path_qs and " " not in url.raw_path_qs
