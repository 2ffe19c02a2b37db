"""Where connections go, asserted on the listening side: 127.0.0.2 is allowed, 127.0.0.3 is not."""

import asyncio
import socket
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from data_prep.config import DownloadConfig
from data_prep.fetch import names
from data_prep.fetch.addresses import AllowedHosts
from data_prep.fetch.client import Fetcher
from data_prep.fetch.failures import FetchError
from data_prep.fetch.guard import AddressGuard
from data_prep.fetch.names import Names
from data_prep.schema import Status
from tests.helpers.hostile_web import HostileWeb, redirect, response
from tests.helpers.name_server import NameServer

FORBIDDEN = "127.0.0.3"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.3", "2130706435", "017700000003", "0x7f000003", "0177.0.0.3", "0x7f.3", "127.3"),
        *("127.0.0.3.", "user:pass@127.0.0.3", "[::ffff:127.0.0.3]", "[::127.0.0.3]"),
        *(
            "[64:ff9b::127.0.0.3]",
            "[2002:7f00:3::]",
            "\uff11\uff12\uff17.0.0.3",
            "127\u30020\u30020\u30023",
        ),
        *("localhost", "LOCALHOST.", "[::1]", "0.0.0.0", "0", "[::]", "[fe80::1%25lo]"),
    ],
)
def test_no_spelling_of_a_forbidden_address_is_connected_to(web, fetch, host):
    web.pages["/"] = response()
    web.pages["/to"] = redirect(f"http://{host}:{web.port}/")
    for url in (f"http://{host}:{web.port}/", web.url("/to")):
        fetched = fetch(url)
        assert fetched.status is Status.REFUSED_PRIVATE_ADDRESS, fetched
        assert not fetched.transient and fetched.body == b""
    assert web.connections[FORBIDDEN] == 0 and web.connections["127.0.0.2"] == 1


def test_the_message_names_the_address_and_the_setting(web, fetch):
    assert fetch(web.url("/", FORBIDDEN)).error == (
        "127.0.0.3 leads to 127.0.0.3, which is not a public address "
        "(ingest.download.allow_private_hosts lists exceptions)"
    )


def test_a_name_that_is_rebound_is_asked_again_and_refused(web, monkeypatch):
    """The first answer is allowed; while it holds no other is asked for; the next one is refused."""
    monkeypatch.setattr(names, "_FOUND_SECONDS", (3.0, 3.0))
    web.pages["/"] = response(headers=("Connection: close",))

    async def run(server):
        config = DownloadConfig(
            allow_private_hosts=["127.0.0.2"],
            nameservers=[server.address],
            robots="ignore",
            retries=0,
        )
        url = web.url("/", "rebound.example")
        async with Fetcher(config) as fetcher:
            early = [await fetcher.fetch(url) for _ in range(5)]
            await asyncio.sleep(3.1)
            return early, [await fetcher.fetch(url) for _ in range(3)]

    with NameServer({"rebound.example": [["127.0.0.2"], [FORBIDDEN]]}) as server:
        early, late = asyncio.run(run(server))
        assert server.questions["rebound.example", 1] == 2
    assert [f.status for f in early] == [Status.OK] * 5
    assert [f.status for f in late] == [Status.REFUSED_PRIVATE_ADDRESS] * 3
    assert "rebound.example leads to 127.0.0.3" in late[0].error
    assert web.connections == {"127.0.0.2": 5}


def test_a_connection_kept_alive_stays_with_the_checked_address(web, monkeypatch):
    monkeypatch.setattr(names, "_FOUND_SECONDS", (0.0, 0.0))
    web.pages["/"] = response()

    async def run(server):
        config = DownloadConfig(
            allow_private_hosts=["127.0.0.2"], nameservers=[server.address], retries=0
        )
        async with Fetcher(config) as fetcher:
            return [await fetcher.fetch(web.url("/", "kept.example")) for _ in range(5)]

    with NameServer({"kept.example": [["127.0.0.2"], [FORBIDDEN]]}) as server:
        assert {f.status for f in asyncio.run(run(server))} == {Status.OK}
    assert web.connections == {"127.0.0.2": 1}


@pytest.mark.parametrize("answer", [[FORBIDDEN], ["127.0.0.2", FORBIDDEN], ["10.0.0.1"], ["::1"]])
def test_one_forbidden_address_refuses_the_name(web, fetch, answer):
    with NameServer({"mixed.example": [answer]}) as server:
        fetched = fetch(web.url("/", "mixed.example"), nameservers=[server.address])
    assert fetched.status is Status.REFUSED_PRIVATE_ADDRESS
    assert not web.connections


def test_an_allowed_name_leads_anywhere_and_only_that_name(web, fetch_all):
    web.pages["/"] = response()
    answers = {"mirror.example": [[FORBIDDEN]], "other.example": [[FORBIDDEN]]}
    with NameServer(answers) as server:
        mirror, other, plain = fetch_all(
            [
                web.url("/", "mirror.example"),
                web.url("/", "other.example"),
                web.url("/", FORBIDDEN),
            ],
            nameservers=[server.address],
            allow_private_hosts=["Mirror.Example"],
        )
    assert mirror.status is Status.OK
    assert other.status is plain.status is Status.REFUSED_PRIVATE_ADDRESS
    assert web.paths(FORBIDDEN) == ["/"]


def test_an_allowed_network_is_allowed_under_any_name(web, fetch_all):
    web.pages["/"] = response()
    with NameServer({"a.example": [[FORBIDDEN]]}) as server:
        found = fetch_all(
            [web.url("/", "a.example"), web.url("/", FORBIDDEN)],
            nameservers=[server.address],
            allow_private_hosts=["127.0.0.2/31"],
        )
    assert [f.status for f in found] == [Status.OK] * 2


def test_the_socket_itself_is_the_last_gate():
    async def run():
        guard = AddressGuard(AllowedHosts([]), Names([]))
        with pytest.raises(FetchError, match="127.0.0.3 leads to 127.0.0.3"):
            guard.open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (FORBIDDEN, 80)))
        guard.open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", 80))).close()
        await guard.close()

    asyncio.run(run())


def test_proxies_of_the_environment_are_not_used(web, fetch, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, web.url("/", FORBIDDEN))
    monkeypatch.delenv("no_proxy", raising=False)
    web.pages["/"] = response()
    assert fetch(web.url("/")).status is Status.OK
    assert web.connections[FORBIDDEN] == 0


def _certificate(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "secure.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("secure.example")]), False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "both.pem"
    pem = serialization.Encoding.PEM
    no_password = serialization.NoEncryption()
    path.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password)
    )
    return path


def test_tls_goes_to_the_checked_address_under_its_name(tmp_path, monkeypatch):
    path = _certificate(tmp_path)
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(path)
    asked = []
    server_side.sni_callback = lambda _socket, name, _context: asked.append(name)
    trusting = ssl.create_default_context(cafile=path)

    async def run(web, server, trusts):
        config = DownloadConfig(
            allow_private_hosts=["127.0.0.2"], nameservers=[server.address], retries=0
        )
        async with Fetcher(config) as fetcher:
            if trusts:
                fetcher._session.connector._ssl = trusting
            return [
                await fetcher.fetch(web.url("/", name))
                for name in ("secure.example", "other.example", "inside.example")
            ]

    answers = {"secure.example": [["127.0.0.2"]], "other.example": [["127.0.0.2"]]}
    answers["inside.example"] = [[FORBIDDEN]]
    with HostileWeb("127.0.0.2", FORBIDDEN, tls=server_side) as web, NameServer(answers) as server:
        web.pages["/"] = response()
        trusted = asyncio.run(run(web, server, True))
        unknown = asyncio.run(run(web, server, False))
        assert web.connections[FORBIDDEN] == 0
    refused = Status.REFUSED_PRIVATE_ADDRESS
    assert [f.status for f in trusted] == [Status.OK, Status.TLS, refused]
    assert [f.status for f in unknown] == [Status.TLS, Status.TLS, refused]
    assert "CERTIFICATE_VERIFY_FAILED" in unknown[0].error and not unknown[0].transient
    assert set(asked) == {"secure.example", "other.example"}
