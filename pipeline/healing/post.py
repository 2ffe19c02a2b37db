"""Words between the main rank and the others, beside the collectives and never waiting for anyone.

Datagrams, since a hung run is when they are needed: torch's TCPStore waits without end for a server whose
process is stopped, and a datagram that is lost is sent again by the next tick anyway.
"""

import ipaddress
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator

import torch.distributed as dist

from pipeline.distributed import DistInfo

log = logging.getLogger("roseate")

# How soon `listen` sees that it is to end.
WAKE_SECONDS = 0.2


class Post:
    """One socket on every rank. Every rank must make one, at the same time.

    The others write to the main rank; the main rank can write to whom it has heard of. A word that does
    not carry the run's secret is not for us.

    Args:
        info: of this process; its group must be there.

    Attributes:
        is_open: whether there is a way to the main rank; alike on all ranks.
        hosts: the node of each rank.
    """

    def __init__(self, info: DistInfo) -> None:
        self._rank, self._closed = info.rank, False
        mine = None
        if info.is_main:
            try:
                family, host = own_address()
                self._socket = socket.socket(family, socket.SOCK_DGRAM)
                self._socket.bind(("", 0))
                mine = (family, host, self._socket.getsockname()[1], secrets.token_hex(8))
            except OSError as error:
                log.warning("hung ranks will not be found, for want of a socket: %s", error)
        all_of_us = [(socket.gethostname(), mine)] * info.world_size
        if info.world_size > 1:
            dist.all_gather_object(all_of_us, all_of_us[info.rank])
        self.hosts = [host for host, _ in all_of_us]
        where = all_of_us[0][1]
        self.is_open = where is not None
        if not self.is_open:
            return
        family, host, port, self._secret = where
        if not info.is_main:
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._addresses = {0: (host, port)}

    def send(self, rank: int, kind: str, value: dict) -> None:
        """Send a word; it may get lost."""
        word = {"secret": self._secret, "rank": self._rank, "kind": kind, "value": value}
        try:
            self._socket.sendto(json.dumps(word).encode(), self._addresses[rank])
        except OSError as error:
            log.debug("rank %d cannot be reached: %s", rank, error)

    def send_all(self, kind: str, value: dict) -> None:
        """Send a word to all that were heard of; from another rank than the main one, to that."""
        for rank in list(self._addresses):
            if rank != self._rank:
                self.send(rank, kind, value)

    def listen(self, seconds: float) -> Iterator[tuple[int, str, dict]]:
        """(rank, kind, value) of every word that comes within so many seconds, as it comes."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._closed:
            self._socket.settimeout(min(left, WAKE_SECONDS))
            try:
                data, address = self._socket.recvfrom(65536)
                word = json.loads(data)
            except (OSError, ValueError):
                continue
            if isinstance(word, dict) and word.get("secret") == self._secret:
                self._addresses[word["rank"]] = address
                yield word["rank"], word["kind"], word["value"]

    def hang_up(self) -> None:
        """Have `listen` end soon, whichever thread it is in."""
        self._closed = True

    def close(self) -> None:
        """Give the socket back."""
        if self.is_open:
            self._socket.close()


def own_address() -> tuple[int, str]:
    """Where other nodes reach this one: family and address from which it reaches MASTER_ADDR.

    Raises:
        OSError: there is no way there.
    """
    master = os.environ["MASTER_ADDR"]
    family, *_, there = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(there)
        address = probe.getsockname()[0]
    # Its own name may mean loopback to the node itself, and is what the others know.
    return int(family), master if ipaddress.ip_address(address).is_loopback else address
