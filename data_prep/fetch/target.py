"""URL text -> what is asked for: http or https, one host in one spelling, nothing secret in it.

Hosts are read as browsers read them (WHATWG URL, section 3.5 "host parsing" and "IPv4 parser"): all
spellings of an address come out as that address, so that what is checked is what is meant.
"""

import functools
import ipaddress

from yarl import URL

from data_prep.fetch.addresses import is_host_name
from data_prep.fetch.failures import FetchError
from data_prep.schema import Status

_MAX_CHARACTERS = 8192  # more than servers take in a request line


def parse_target(text: str) -> URL:
    """Reads a row's URL.

    Raises:
        FetchError: with refused_scheme or invalid_url.
    """
    text = text.strip()
    if len(text) > _MAX_CHARACTERS:
        raise _invalid(f"{len(text)} characters, more than {_MAX_CHARACTERS}")
    try:
        url = URL(text)
    except ValueError as error:
        raise _invalid(str(error)) from None
    return normalize_target(url)


def normalize_target(url: URL) -> URL:
    """Checks scheme and host of a URL, of a row or of a redirect; returns it with the host in its one
    spelling, without user, password and fragment.

    Raises:
        FetchError: with refused_scheme or invalid_url.
    """
    if url.scheme not in ("http", "https"):
        raise FetchError(
            Status.REFUSED_SCHEME, f"only http and https are fetched, not {url.scheme[:40]!r}"
        )
    host = url.raw_host
    if not host:
        raise _invalid("it names no host")
    if url.port == 0:
        raise _invalid("port 0")
    if "@" in url.raw_authority:
        url = url.with_user(None)
    normal = normalize_host(host)
    if normal != host:
        url = url.with_host(normal)
    return url.with_fragment(None) if url.raw_fragment else url


@functools.lru_cache(maxsize=4096)
def normalize_host(host: str) -> str:
    """One spelling for a host, as yarl gives it: lower case, IDNA, without brackets.

    Returns:
        a canonical address, or a name without trailing dot.

    Raises:
        FetchError: with invalid_url; with refused_private_address for an address with a zone, which
            only has a meaning on this machine's own links.
    """
    if ":" in host:
        if "%" in host:
            raise FetchError(
                Status.REFUSED_PRIVATE_ADDRESS, f"{host} is an address of a link of this machine"
            )
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise _invalid(f"host {host[:80]!r}: {error}") from None
    name = host.removesuffix(".").lower()
    if is_host_name(name):
        return name
    last = name.rpartition(".")[2]
    if last.isdigit() or last.startswith("0x"):
        return _ipv4(name)
    raise _invalid(f"host {host[:80]!r} is neither a name nor an address")


def _ipv4(host: str) -> str:
    parts = host.split(".")
    try:
        numbers = [_number(part) for part in parts]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 4 or any(n > 255 for n in numbers[:-1]):
        raise _invalid(f"host {host[:80]!r} is not an IPv4 address")
    rest = 5 - len(numbers)  # bytes that the last number fills
    if numbers[-1] >= 256**rest:
        raise _invalid(f"host {host[:80]!r} is not an IPv4 address")
    value = numbers[-1] + sum(n << (24 - 8 * i) for i, n in enumerate(numbers[:-1]))
    return str(ipaddress.IPv4Address(value))


def _number(text: str) -> int:
    if not text or not text.isascii() or not text.isalnum() or len(text) > 40:
        raise ValueError(text)
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8) if text.startswith("0") else int(text, 10)


def _invalid(reason: str) -> FetchError:
    return FetchError(Status.INVALID_URL, f"not a usable URL: {reason}")
