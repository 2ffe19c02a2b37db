"""Pages that misbehave, each with the status that a fetch of it ends in."""

import gzip
import zlib

from data_prep.schema import Status
from tests.helpers.hostile_web import (
    PICTURE,
    Page,
    closing,
    dripping,
    endless,
    redirect,
    response,
    silent,
)


def bomb(megabytes: int) -> bytes:
    """A small gzip file of many zeros."""
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = bytes(1 << 20)
    return b"".join([*(stream.compress(piece) for _ in range(megabytes)), stream.flush()])


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_GZIP = ("Content-Encoding: gzip",)


def hostile_pages() -> dict[str, tuple[Page, Status]]:
    """Path -> page and how a fetch of it ends, with limits of 100,000 bytes and below a second."""
    return {
        "/good": (response(), Status.OK),
        "/good/until-close": (closing(_HEAD + b"\r\n" + PICTURE), Status.OK),
        "/good/chunked": (_CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", Status.OK),
        "/good/gzip": (response(gzip.compress(PICTURE), headers=_GZIP), Status.OK),
        "/good/deflate": (
            response(zlib.compress(PICTURE), headers=("Content-Encoding: deflate",)),
            Status.OK,
        ),
        "/good/raw-deflate": (
            response(zlib.compress(PICTURE)[2:-4], headers=("Content-Encoding: Deflate",)),
            Status.OK,
        ),
        "/good/early-hints": (b"HTTP/1.1 103 Early\r\n\r\n" * 3 + response(), Status.OK),
        "/good/empty": (response(b""), Status.OK),
        "/body/endless": (endless(_HEAD + b"\r\n", bytes(65536)), Status.TOO_MANY_BYTES),
        "/body/endless-chunks": (endless(_CHUNKED, b"1\r\na\r\n" * 1000), Status.TOO_MANY_BYTES),
        "/body/announced": (response(bytes(100_001)), Status.TOO_MANY_BYTES),
        "/body/drip": (dripping(_HEAD + b"\r\n", b"a"), Status.TIMEOUT),
        "/body/silent": (silent(_HEAD + b"Content-Length: 9\r\n\r\nabc"), Status.TIMEOUT),
        "/body/short": (
            closing(_HEAD + b"Content-Length: 9\r\n\r\nabc"),
            Status.CONNECTION,
        ),
        "/body/long": (
            closing(_HEAD + b"Content-Length: 3\r\n\r\nabcdef"),
            Status.MALFORMED_RESPONSE,
        ),
        "/body/negative-length": (
            closing(_HEAD + b"Content-Length: -1\r\n\r\n"),
            Status.MALFORMED_RESPONSE,
        ),
        "/body/two-lengths": (
            closing(_HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
            Status.MALFORMED_RESPONSE,
        ),
        "/body/cut-chunk": (closing(_CHUNKED + b"9\r\nabc"), Status.CONNECTION),
        "/body/no-last-chunk": (closing(_CHUNKED + b"3\r\nabc\r\n"), Status.CONNECTION),
        "/body/broken-chunk": (closing(_CHUNKED + b"zzz\r\nabc\r\n"), Status.MALFORMED_RESPONSE),
        "/body/chunk-size-flood": (endless(_CHUNKED, b"f" * 65536), Status.MALFORMED_RESPONSE),
        "/body/chunk-size-drip": (dripping(_CHUNKED, b"0"), Status.TIMEOUT),
        "/body/trailer-flood": (
            endless(_CHUNKED + b"3\r\nabc\r\n0\r\n", b"X: " + b"a" * 1000 + b"\r\n"),
            Status.MALFORMED_RESPONSE,
        ),
        "/body/drip-chunks": (dripping(_CHUNKED, b"1\r\na\r\n"), Status.TIMEOUT),
        "/gzip/bomb": (response(bomb(64), headers=_GZIP), Status.TOO_MANY_BYTES),
        "/gzip/cut": (
            response(gzip.compress(PICTURE)[:-9], headers=_GZIP),
            Status.CONNECTION,
        ),
        "/gzip/not": (response(headers=_GZIP), Status.MALFORMED_RESPONSE),
        "/gzip/more-behind": (
            response(gzip.compress(b"abc") + b"def", headers=_GZIP),
            Status.MALFORMED_RESPONSE,
        ),
        "/gzip/twice": (
            response(headers=("Content-Encoding: gzip, gzip",)),
            Status.MALFORMED_RESPONSE,
        ),
        "/brotli": (response(headers=("Content-Encoding: br",)), Status.MALFORMED_RESPONSE),
        "/head/many": (
            response(headers=tuple(f"X-{i}: a" for i in range(1000))),
            Status.MALFORMED_RESPONSE,
        ),
        "/head/endless-headers": (endless(_HEAD, b"X-A: b\r\n" * 100), Status.MALFORMED_RESPONSE),
        "/head/endless-line": (endless(_HEAD + b"X: ", b"a" * 65536), Status.MALFORMED_RESPONSE),
        "/head/endless-name": (endless(_HEAD, b"a" * 65536), Status.MALFORMED_RESPONSE),
        "/head/endless-reason": (
            endless(b"HTTP/1.1 200 ", b"a" * 65536),
            Status.MALFORMED_RESPONSE,
        ),
        "/head/endless-1xx": (
            endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 100),
            Status.MALFORMED_RESPONSE,
        ),
        "/head/drip": (dripping(_HEAD, b"X-A: b\r\n"), Status.TIMEOUT),
        "/head/silent": (silent(), Status.TIMEOUT),
        "/head/half": (closing(_HEAD), Status.CONNECTION),
        "/head/garbage": (closing(b"\x00\x01\x02 hello\r\n\r\n"), Status.MALFORMED_RESPONSE),
        "/head/http-0.9": (closing(b"<html>hello</html>"), Status.MALFORMED_RESPONSE),
        "/head/switching": (
            closing(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc"),
            Status.HTTP_ERROR,
        ),
        "/closes-at-once": (closing(b""), Status.CONNECTION),
        "/code/403": (response(b"", code=403), Status.HTTP_ERROR),
        "/code/404": (response(b"", code=404), Status.HTTP_404),
        "/code/410": (response(b"", code=410), Status.HTTP_404),
        "/code/500": (response(b"", code=500), Status.HTTP_ERROR),
        "/code/204": (b"HTTP/1.1 204 None\r\n\r\n", Status.HTTP_ERROR),
        "/code/206": (response(code=206), Status.HTTP_ERROR),
        "/code/302-nowhere": (response(b"", code=302), Status.HTTP_ERROR),
        "/type/html": (
            response(b"<html>", headers=("Content-Type: text/html; charset=utf-8",)),
            Status.WRONG_CONTENT_TYPE,
        ),
        "/type/html-as-image": (response(b"<html>"), Status.OK),  # the decoder's matter
        "/opt-out": (response(headers=("X-Robots-Tag: noai",)), Status.REFUSED_OPT_OUT),
        "/opt-out/bodiless": (
            silent(_HEAD + b"X-Robots-Tag: noai\r\nContent-Length: 9\r\n\r\n"),
            Status.REFUSED_OPT_OUT,
        ),
        "/opt-out/redirect": (
            redirect("/good", "X-Robots-Tag: noimageai"),
            Status.REFUSED_OPT_OUT,
        ),
        "/to/file": (redirect("file:///etc/passwd"), Status.REFUSED_SCHEME),
        "/to/data": (redirect("data:image/png;base64,AAAA"), Status.REFUSED_SCHEME),
        "/to/loopback": (redirect("http://127.0.0.1:9/"), Status.REFUSED_PRIVATE_ADDRESS),
        "/to/localhost": (redirect("http://localhost:9/"), Status.REFUSED_PRIVATE_ADDRESS),
        "/to/private": (redirect("//10.0.0.1/"), Status.REFUSED_PRIVATE_ADDRESS),
        "/to/metadata": (
            redirect("http://169.254.169.254/latest/meta-data/"),
            Status.REFUSED_PRIVATE_ADDRESS,
        ),
        "/to/decimal": (redirect("http://2130706433/"), Status.REFUSED_PRIVATE_ADDRESS),
        "/to/mapped": (redirect("http://[::ffff:127.0.0.1]/"), Status.REFUSED_PRIVATE_ADDRESS),
        "/to/itself": (redirect("/to/itself"), Status.TOO_MANY_REDIRECTS),
        "/to/bad-port": (redirect("http://a.example:99999/"), Status.MALFORMED_RESPONSE),
        "/to/good-absolute": (redirect("/good", code=308), Status.OK),
    }
