"""Which addresses the open web may lead us to, and the exceptions that a config names.

Source: the IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890, as of 2025), which
are refused as a whole, also the few blocks in them that are reachable: nobody serves pictures there.
"""

import ipaddress
import re
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SPECIAL_IPV4 = (
    "0.0.0.0/8",  # "this network", RFC 791
    "10.0.0.0/8",  # private, RFC 1918
    "100.64.0.0/10",  # shared by carriers (CGNAT), RFC 6598; metadata of some clouds
    "127.0.0.0/8",  # loopback, RFC 1122
    "168.63.129.16/32",  # no special block, but what every Azure machine calls its host
    "169.254.0.0/16",  # link-local, RFC 3927; metadata of most clouds
    "172.16.0.0/12",  # private, RFC 1918
    "192.0.0.0/24",  # IETF protocol assignments, RFC 6890
    "192.0.2.0/24",  # documentation, RFC 5737
    "192.31.196.0/24",  # AS112, RFC 7535
    "192.52.193.0/24",  # AMT, RFC 7450
    "192.88.99.0/24",  # 6to4 relays, RFC 7526
    "192.168.0.0/16",  # private, RFC 1918
    "192.175.48.0/24",  # AS112, RFC 7534
    "198.18.0.0/15",  # benchmarks, RFC 2544
    "198.51.100.0/24",  # documentation, RFC 5737
    "203.0.113.0/24",  # documentation, RFC 5737
    "224.0.0.0/4",  # multicast, RFC 5771
    "240.0.0.0/4",  # reserved and broadcast, RFC 1112, RFC 8190
)
# All outside 2000::/3 is refused besides: unspecified, loopback, IPv4-mapped and -compatible,
# 64:ff9b:1::/48, unique local, site-local, link-local, multicast, SRv6, discard-only.
SPECIAL_IPV6 = (
    "2001::/23",  # IETF protocol assignments: Teredo, benchmarks, ORCHID, RFC 2928
    "2001:db8::/32",  # documentation, RFC 3849
    "2002::/16",  # 6to4, RFC 3056: leads to the IPv4 address inside
    "2620:4f:8000::/48",  # AS112, RFC 7534
    "3fff::/20",  # documentation, RFC 9637
)
GLOBAL_UNICAST = "2000::/3"  # RFC 4291 section 2.4, as far as IANA has given it out
NAT64 = "64:ff9b::/96"  # RFC 6052: networks without IPv4 reach all of it by this


def _ranges(networks: Iterable[str]) -> tuple[tuple[int, int], ...]:
    parsed = (ipaddress.ip_network(network) for network in networks)
    return tuple((int(n.network_address), int(n.broadcast_address)) for n in parsed)


_SPECIAL_IPV4 = _ranges(SPECIAL_IPV4)
_SPECIAL_IPV6 = _ranges(SPECIAL_IPV6)
((_GLOBAL_FIRST, _GLOBAL_LAST),) = _ranges([GLOBAL_UNICAST])
((_NAT64_FIRST, _NAT64_LAST),) = _ranges([NAT64])
# The upper half of an ISATAP interface identifier, RFC 5214 section 6.1; the lower is an IPv4 address.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def is_public(address: str) -> bool:
    """Whether an address is one of the open Internet, and not one of a machine's or network's inside.

    An IPv6 address that stands for an IPv4 address is refused, whatever the inner one, but for NAT64's
    well-known prefix, which is judged by it. A NAT64 prefix of a network's own cannot be told from
    other addresses.

    Args:
        address: IPv4 or IPv6 in the notation of `ipaddress`; a zone identifier makes it private.

    Raises:
        ValueError: it is no address.
    """
    ip = ipaddress.ip_address(address)
    number = int(ip)
    if ip.version == 4:
        return _is_public_ipv4(number)
    if ip.scope_id is not None:
        return False
    if _NAT64_FIRST <= number <= _NAT64_LAST:
        return _is_public_ipv4(number & 0xFFFF_FFFF)
    if not _GLOBAL_FIRST <= number <= _GLOBAL_LAST:
        return False
    if (number >> 32) & 0xFFFF_FFFF in _ISATAP:
        return False
    return not any(first <= number <= last for first, last in _SPECIAL_IPV6)


def _is_public_ipv4(number: int) -> bool:
    return not any(first <= number <= last for first, last in _SPECIAL_IPV4)


_HOST_NAME = re.compile(
    r"(?=.{1,253}$)([a-z0-9_-]{1,63}\.)*(?![0-9]+$|0x[0-9a-f]*$)[a-z0-9_-]{1,63}"
)


def is_host_name(host: str) -> bool:
    """Whether a lower-case ASCII host can be a name: labels of up to 63 letters, digits, - and _,
    the last one not a number (WHATWG URL, "ends in a number": that would be an address)."""
    return _HOST_NAME.fullmatch(host) is not None


class AllowedHosts:
    """What a config lets be private: host names, addresses, networks.

    An address or network allows that address whatever name leads to it; a name allows whatever it
    leads to.
    """

    def __init__(self, entries: Iterable[str]):
        """Reads the entries.

        Raises:
            ValueError: some are neither name, nor address, nor network; the message names each.
        """
        names, networks, wrong = set(), [], []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry.strip().strip("[]")))
                continue
            except ValueError as error:
                reason = str(error) if "host bits" in str(error) else ""
            name = _ascii_name(entry)
            if name is None or reason:
                wrong.append(f"{entry!r} ({reason})" if reason else repr(entry))
            else:
                names.add(name)
        if wrong:
            raise ValueError(
                f"each entry is a host name, an address or a network, without scheme, port or path, "
                f"not {', '.join(wrong)}; write e.g. mirror.example.org, 127.0.0.1 or 10.1.0.0/16"
            )
        self._names = frozenset(names)
        self._networks: tuple[Network, ...] = tuple(networks)

    def has_name(self, host: str) -> bool:
        """Whether a host name may lead anywhere; `host` in lower case, without a trailing dot."""
        return host in self._names

    def permits(self, address: str) -> bool:
        """Whether an address may be connected to: public, or an entry holds it."""
        if is_public(address):
            return True
        if not self._networks:
            return False
        ip = ipaddress.ip_address(address)
        return any(ip in network for network in self._networks)


def _ascii_name(entry: str) -> str | None:
    name = entry.strip().lower().removesuffix(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            return None
    return name if is_host_name(name) else None


_PORT = re.compile(r"[0-9]{1,5}")


def check_nameservers(entries: Iterable[str]) -> None:
    """Checks DNS servers: address, address:port, or [IPv6 address]:port.

    Raises:
        ValueError: some are not; the message names each.
    """
    wrong = [entry for entry in entries if not _is_nameserver(entry)]
    if wrong:
        raise ValueError(
            f"each entry is an address or address:port, not {', '.join(map(repr, wrong))}; write "
            "e.g. 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353, no host names"
        )


def _is_nameserver(entry: str) -> bool:
    address, colon, port = entry, "", ""
    if entry.startswith("["):
        address, bracket, rest = entry[1:].partition("]")
        _, colon, port = rest.partition(":")
        if not bracket or (rest and not rest.startswith(":")):
            return False
    elif entry.count(":") == 1:
        address, colon, port = entry.partition(":")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return not colon or (_PORT.fullmatch(port) is not None and 0 < int(port) < 65536)
