import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.fetch.addresses import (
    SPECIAL_IPV4,
    SPECIAL_IPV6,
    AllowedHosts,
    check_nameservers,
    is_host_name,
    is_public,
)

# As the IANA registries list them, independently of the source: prefix by prefix.
IANA_IPV4 = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32"),
    *("192.0.0.10/32", "192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24"),
    *("192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32"),
    "224.0.0.0/4",  # of the multicast registry
)
IANA_IPV6 = (
    *("::1/128", "::/128", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64"),
    *("2001::/23", "2001::/32", "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48"),
    *("2001:3::/32", "2001:4:112::/48", "2001:10::/28", "2001:20::/28", "2001:30::/28"),
    *("2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7"),
    *("fe80::/10", "fec0::/10", "ff00::/8", "::/96", "4000::/2", "8000::/1"),
)


def inside(networks):
    """Addresses of the networks, their ends more often than by chance."""

    def of(network):
        first, last = int(network[0]), int(network[-1])
        kind = type(network[0])
        return st.one_of(st.sampled_from([first, last]), st.integers(first, last)).map(kind)

    return st.sampled_from([ipaddress.ip_network(n) for n in networks]).flatmap(of)


@given(inside(IANA_IPV4 + SPECIAL_IPV4))
def test_special_ipv4_addresses_are_not_public_in_any_embedding(address):
    number = int(address)
    assert not is_public(str(address))
    embedded = {
        "mapped": 0xFFFF << 32 | number,
        "translated": 0xFFFF << 48 | number,
        "compatible": number,
        "6to4": 0x2002 << 112 | number << 80 | 1,
        "teredo server": 0x2001_0000 << 96 | number << 64,
        "teredo client": 0x2001_0000 << 96 | (number ^ 0xFFFF_FFFF),
        "nat64": 0x64_FF9B << 96 | number,
        "local nat64": 0x64_FF9B_0001 << 80 | number,
        "isatap": 0x2600_1234 << 96 | 0x5EFE << 32 | number,
        "isatap, global": 0x2600_1234 << 96 | 0x0200_5EFE << 32 | number,
    }
    assert [k for k, n in embedded.items() if is_public(str(ipaddress.IPv6Address(n)))] == []


@given(inside(IANA_IPV6 + SPECIAL_IPV6))
def test_special_ipv6_addresses_are_not_public(address):
    assert not is_public(str(address))


@given(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address))
def test_all_other_ipv4_addresses_are_public(address):
    special = any(address in ipaddress.ip_network(n) for n in (*IANA_IPV4, "168.63.129.16/32"))
    assert is_public(str(address)) is not special
    assert is_public(f"64:ff9b::{address}") is not special


@given(st.ip_addresses(v=6))
def test_what_python_calls_private_is_never_public(address):
    if not address.is_global or address.is_multicast:
        well_known = address in ipaddress.ip_network("64:ff9b::/96")
        assert well_known or not is_public(str(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "2a00:1450:4001::1", "64:ff9b::808:808"],
)
def test_ordinary_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    ["fe80::1%eth0", "2606:4700::1%1", "fd00:ec2::254", "168.63.129.16", "169.254.169.254"],
)
def test_zones_and_metadata_are_not_public(address):
    assert not is_public(address)


def test_what_is_no_address_is_an_error():
    with pytest.raises(ValueError):
        is_public("example.org")


def test_allowed_entries_are_names_addresses_and_networks():
    allowed = AllowedHosts(
        ["Mirror.Example.", "127.0.0.1", "10.1.0.0/16", "[::1]", "b\u00fccher.example"]
    )
    assert allowed.has_name("mirror.example") and allowed.has_name("xn--bcher-kva.example")
    assert not allowed.has_name("sub.mirror.example") and not allowed.has_name("127.0.0.1")
    assert all(map(allowed.permits, ["127.0.0.1", "10.1.255.3", "::1", "1.1.1.1"]))
    assert not any(map(allowed.permits, ["127.0.0.2", "10.2.0.1", "::2", "::ffff:127.0.0.1"]))


def test_nothing_is_allowed_without_entries():
    allowed = AllowedHosts([])
    assert allowed.permits("1.1.1.1") and not allowed.permits("127.0.0.1")


@pytest.mark.parametrize(
    "entry",
    ["127.0.0.1:80", "http://a.example", "a.example/x", "", "127.1", "0x7f000001", "a b", "*"],
)
def test_other_entries_are_refused(entry):
    with pytest.raises(
        ValueError, match="each entry is a host name, an address or a network"
    ) as error:
        AllowedHosts(["good.example", entry])
    assert repr(entry) in str(error.value) and "good.example'" not in str(error.value)


def test_a_network_with_host_bits_is_refused_with_its_reason():
    with pytest.raises(ValueError, match=r"'10\.1\.2\.3/8' \(10\.1\.2\.3/8 has host bits set\)"):
        AllowedHosts(["10.1.2.3/8"])


def test_nameservers():
    check_nameservers(["192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:53"])


@pytest.mark.parametrize(
    "entry", ["dns.example", "192.0.2.53:0", "192.0.2.53:99999", "[::1", "[::1]53", "", "1.1.1.1:x"]
)
def test_other_nameservers_are_refused(entry):
    with pytest.raises(ValueError, match="each entry is an address or address:port") as error:
        check_nameservers(["192.0.2.53", entry])
    assert repr(entry) in str(error.value)


@pytest.mark.parametrize(
    "host", ["a", "a-b.c_d.example", "1.example", "x" * 63 + ".example", "1e3"]
)
def test_host_names(host):
    assert is_host_name(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "a.",
        "a..b",
        "A",
        "1",
        "1.2",
        "0x1f",
        "a.0x",
        "x" * 64,
        "a." * 127 + "a",
        "a%b",
        "a\nb",
        "a\n",
    ],
)
def test_what_is_no_host_name(host):
    assert not is_host_name(host)
