"""img2dataset in its child process, against a hostile web and a hostile life."""

import hashlib
import io
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_prep.config import IngestConfig
from data_prep.engines import img2dataset
from data_prep.errors import ConfigError
from data_prep.schema import Status
from tests.helpers.raw_web import RawWeb, head, image

FORBIDDEN = "127.0.0.2"


@pytest.fixture(scope="module")
def web():
    with RawWeb("127.0.0.1").serving() as web:
        yield web


def config_of(**sections) -> IngestConfig:
    download = {"engine": "img2dataset", "robots": "ignore", "per_host": 16, "concurrency": 16}
    download |= {"allow_private_hosts": ["127.0.0.1"], "retries": 0, "timeout_seconds": 20}
    return IngestConfig(
        output="unused",
        sources={"web": {"table": "unused"} | sections.pop("source", {})},
        image={"size": 64} | sections.pop("image", {}),
        download=download | sections.pop("download", {}),
        **sections,
    )


def run(urls, config, expected=None, status=None):
    """Outcome by row; every row has one outcome at most."""
    nothing = [None] * len(urls)
    columns = {"url": urls, "expected": expected or nothing, "status": status or nothing}
    rows = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    outcomes = {}

    def put(i, outcome):
        assert i not in outcomes
        outcomes[i] = outcome

    img2dataset.process(rows, config, config.sources["web"], put)
    return outcomes


def picture(width=80, height=40, mode="RGB", **options) -> bytes:
    """A PNG of random colours."""
    channels = len(mode) if mode in ("RGB", "RGBA") else 1
    pixels = np.random.default_rng().integers(0, 256, (height, width, channels), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(buffer, "PNG", **options)
    return buffer.getvalue()


def blank(side: int, mode: str = "1") -> bytes:
    """A small file of many pixels."""
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def test_every_row_of_a_hostile_web_ends_in_its_status(web):
    png, turned = picture(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(png)).save(turned, "JPEG", exif=exif)
    with RawWeb(FORBIDDEN).serving() as inside:
        cases = {
            "good": (image(png), Status.OK),
            "turned": (image(turned.getvalue()), Status.OK),
            "moved": (head("302 Found", "Location: good"), Status.OK),
            "gone": (head("410 Gone"), Status.HTTP_404),
            "busy": (head("503 Slow Down"), Status.HTTP_ERROR),
            "nothing": (head("204 No Content"), Status.HTTP_ERROR),
            "page": (head("200 OK", "Content-Type: text/html") + png, Status.WRONG_CONTENT_TYPE),
            "lying": (image(b"<html>" + secrets.token_bytes(64)), Status.UNDECODABLE),
            "no-ai": (
                image(png, "X-Robots-Tag: other: noai, roseate: noai"),
                Status.REFUSED_OPT_OUT,
            ),
            "not-us": (image(png, "X-Robots-Tag: other: noai"), Status.OK),
            "to-file": (head("302 Found", "Location: file:///etc/passwd"), Status.REFUSED_SCHEME),
            "to-ftp": (head("301 Moved", f"Location: ftp://{FORBIDDEN}/"), Status.REFUSED_SCHEME),
            "to-inside": (
                head("302 Found", f"Location: {inside.url}/secret"),
                Status.REFUSED_PRIVATE_ADDRESS,
            ),
            "loop": (head("302 Found", "Location: loop"), Status.TOO_MANY_REDIRECTS),
            "large": (head("200 OK", "Content-Length: 3000000"), Status.TOO_MANY_BYTES),
            "endless": (
                lambda x: x.drip(head("200 OK"), b"x" * 100_000, 0.0),
                Status.TOO_MANY_BYTES,
            ),
            "short": (image(png)[:-9], Status.CONNECTION),
            "flood": (
                head("200 OK", *(f"X-{i}: y" for i in range(300))),
                Status.MALFORMED_RESPONSE,
            ),
            "not-http": (b"SSH-2.0-OpenSSH_9.9\r\n", Status.MALFORMED_RESPONSE),
            "thin": (image(picture(320, 8)), Status.FILTERED_ASPECT_RATIO),
            "tiny": (image(picture(7, 7)), Status.FILTERED_SIZE),
            "bomb": (image(blank(12_000)), Status.TOO_MANY_PIXELS),
            "heavy": (image(blank(5_000, "RGBA")), Status.DECODER_MEMORY),
        }
        web.answers = {f"/{name}": answer for name, (answer, _) in cases.items()}
        urls = {name: f"{web.url}/{name}" for name in cases}
        with RawWeb("127.0.0.1").serving() as closed:
            pass
        more = {
            "missing": (f"{web.url}/not-there", Status.HTTP_404),
            "file": ("file:///etc/passwd", Status.REFUSED_SCHEME),
            "data": ("data:image/png;base64,AAAA", Status.REFUSED_SCHEME),
            "no host": ("http:///x.png", Status.INVALID_URL),
            "inside": (f"{inside.url}/secret", Status.REFUSED_PRIVATE_ADDRESS),
            "decimal": (f"http://2130706434:{inside.port}/", Status.REFUSED_PRIVATE_ADDRESS),
            "closed": (f"{closed.url}/", Status.CONNECTION),
        }
        urls |= {name: url for name, (url, _) in more.items()}
        wanted = {name: status for name, (_, status) in (cases | more).items()}
        config = config_of(
            filter={"min_side_pixels": 8, "max_aspect_ratio": 30},
            decode={"memory_bytes": 300_000_000},
            download={"max_bytes": 2_000_000, "contact": "ops@example.org"},
        )
        found = run([*urls.values()], config)
        assert inside.connections == 0
    outcomes = dict(zip(urls, (found[i] for i in range(len(urls))), strict=True))
    statuses = {name: outcome.status for name, outcome in outcomes.items()}
    assert statuses == wanted, {n: o.error for n, o in outcomes.items() if o.status != wanted[n]}
    transient = {name for name, outcome in outcomes.items() if outcome.transient}
    assert transient == {"busy", "short", "closed"}
    good = outcomes["good"]
    assert good.sha256_fetched == hashlib.sha256(png).hexdigest()
    assert (good.fetched_bytes, good.http_status) == (len(png), 200)
    assert (good.original_width, good.original_height, good.width, good.height) == (80, 40, 64, 32)
    with Image.open(io.BytesIO(good.data)) as stored:
        assert (stored.format, stored.size, good.format) == ("JPEG", (64, 32), "jpg")
    # The gap that the docs name: EXIF orientation is not applied.
    assert (outcomes["turned"].width, outcomes["turned"].height) == (64, 32)
    assert outcomes["moved"].final_url == f"{web.url}/good" and good.final_url == urls["good"]
    agent = web.headers["/good"]["user-agent"]
    assert agent.startswith("roseate/") and "+ops@example.org" in agent and "Mozilla" not in agent


def test_a_dripping_server_and_a_silent_one_end_by_the_timeout_of_the_row(web):
    web.answers = {
        "/body": lambda x: x.drip(head("200 OK", "Content-Type: image/png"), b"x"),
        "/head": lambda x: x.drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        "/silence": lambda x: x.server.web.closing.wait(60),
        "/good": image(picture()),
    }
    config = config_of(download={"timeout_seconds": 4, "idle_seconds": 3})
    found = run([f"{web.url}{path}" for path in web.answers], config)
    assert [found[i].status for i in range(4)] == [Status.TIMEOUT] * 3 + [Status.OK]
    assert all(found[i].transient for i in range(3))
    assert all(found[i].seconds < 60 for i in range(3))


def test_hashes_modes_retries_and_rows_that_have_ended(web):
    right, wrong = picture(100, 50), picture(100, 50)
    web.answers = {"/right": image(right), "/wrong": image(wrong), "/old": image(right)}
    web.answers |= {"/gone": head("404 Not Found"), "/busy": head("500 Sorry")}
    web.requests.clear()
    expected = [hashlib.md5(right).hexdigest()] * 2 + [None, "", ""]
    config = config_of(
        source={"verify": "md5"},
        image={"mode": "border", "format": "png", "size": 48},
        download={"retries": 2},
    )
    ended = [None, None, "missing_hash", None, None]
    found = run([f"{web.url}{path}" for path in web.answers], config, expected, ended)
    wanted = {0: Status.OK, 1: Status.HASH_MISMATCH, 3: Status.HTTP_404, 4: Status.HTTP_ERROR}
    assert {i: o.status for i, o in found.items()} == wanted
    # Only what may be better the next time is asked for again.
    assert web.requests == {"/right": 1, "/wrong": 1, "/gone": 1, "/busy": 3}
    with Image.open(io.BytesIO(found[0].data)) as stored:
        assert (stored.format, stored.size, found[0].format) == ("PNG", (48, 48), "png")


def children(of: int | None = None) -> list[int]:
    """img2dataset's children of a process, by default this one."""
    found, wanted = [], os.getpid() if of is None else of
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit():
                continue
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            is_ours = img2dataset.CHILD.encode() in (folder / "cmdline").read_bytes()
            if parent == wanted and is_ours:
                found.append(int(folder.name))
        except OSError:
            continue  # ended meanwhile
    return found


def test_a_killed_child_costs_no_row(web):
    """The child is killed while it waits for one row; another one fetches what is left."""
    kills = []

    def kill_once(exchange):
        if not kills:
            time.sleep(0.5)
            kills.extend(children())
            os.kill(kills[0], signal.SIGKILL)
        exchange.wfile.write(image(picture()))

    web.answers = {f"/{i}": image(picture()) for i in range(5)} | {"/kill": kill_once}
    found = run([f"{web.url}{path}" for path in web.answers], config_of())
    assert len(kills) == 1
    assert [found[i].status for i in range(6)] == [Status.OK] * 6


def test_children_that_never_get_going_end_their_rows_as_our_own_failure(web):
    done = threading.Event()

    def kill_all():
        while not done.is_set():
            for child in children():
                os.kill(child, signal.SIGKILL)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        found = run([f"{web.url}/{i}" for i in range(3)], config_of())
    finally:
        done.set()
        killer.join()
    assert {o.status for o in found.values()} == {Status.INTERNAL_ERROR}
    assert len(found) == 3 and "ended with -9" in found[0].error


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


PARENT = """
import pyarrow as pa
from data_prep.config import IngestConfig
from data_prep.engines.img2dataset import process
config = IngestConfig.model_validate_json({config!r})
rows = pa.table({{"url": [{url!r}], "expected": [None], "status": [None]}})
process(rows, config, config.sources["web"], print)
"""


def test_a_child_does_not_outlive_its_parent(web):
    begun = threading.Event()
    web.answers = {"/hang": lambda x: (begun.set(), x.server.web.closing.wait(60))}
    code = PARENT.format(config=config_of().model_dump_json(), url=f"{web.url}/hang")
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert begun.wait(60)
        (child,) = children(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    end = time.monotonic() + 60
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(child)


def test_rows_that_have_all_ended_start_nothing(monkeypatch):
    monkeypatch.setattr(img2dataset, "CHILD", "there_is_none")
    assert run(["x"], config_of(), status=["missing_hash"]) == {}


# What OpenCV would have to be made to do: a child that keeps to the protocol as far as its first row.
RUDE = """
import json, os, sys, time
from multiprocessing.connection import Connection
to = Connection(int(sys.argv[2]), readable=False)
rows = json.load(open(sys.argv[1] + "/job.json"))["rows"]
def end(row):
    to.send_bytes(json.dumps({"row": row, "outcome": {"status": "undecodable", "error": "x"}}).encode())
if rows == 3:
    end(1)
    to.send_bytes(b'{"decoding": 0}')
    {deed}
for row in range(rows):
    end(row)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("deed", "status"),
    [
        ("os.abort()", Status.DECODER_CRASHED),
        ("time.sleep(600)", Status.DECODER_TIMEOUT),
        ("to.send_bytes(b'nonsense'); time.sleep(600)", Status.DECODER_CRASHED),
        ("to.send_bytes(b'{\"row\": 7}'); time.sleep(600)", Status.DECODER_CRASHED),
        ("os.write(to.fileno(), b'\\\\0\\\\0\\\\1'); os.abort()", Status.DECODER_CRASHED),
    ],
)
def test_a_decoder_that_dies_hangs_or_rambles_costs_the_row_it_was_at(
    tmp_path, monkeypatch, deed, status
):
    use_child(tmp_path, monkeypatch, RUDE.replace("{deed}", deed))
    config = config_of(decode={"timeout_seconds": 0.5})
    found = run([f"http://192.0.2.1/{i}" for i in range(3)], config)
    assert [found[i].status for i in range(3)] == [status, Status.UNDECODABLE, Status.UNDECODABLE]


def test_rows_that_the_child_tells_nothing_of_are_our_own_failure(tmp_path, monkeypatch):
    use_child(tmp_path, monkeypatch, "")
    found = run(["http://192.0.2.1/"] * 2, config_of())
    assert {(o.status, o.transient) for o in found.values()} == {(Status.INTERNAL_ERROR, True)}
    assert "told nothing of this row" in found[0].error and len(found) == 2


def test_a_child_that_hangs_ends_with_the_time_of_its_rows(tmp_path, monkeypatch):
    use_child(tmp_path, monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(img2dataset, "START_SECONDS", 0.5)
    found = run(["http://192.0.2.1/"] * 2, config_of())
    assert {(o.status, o.transient) for o in found.values()} == {(Status.TIMEOUT, True)}
    assert "came to a halt" in found[1].error
    monkeypatch.setattr(img2dataset, "shard_seconds", lambda config, rows: 0.2)
    found = run(["http://192.0.2.1/"] * 2, config_of())
    assert "time of the shard was up" in found[1].error


def test_a_child_is_given_no_credentials_and_no_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    copy = tmp_path / "environ"
    use_child(
        tmp_path,
        monkeypatch,
        f"import os; open({str(copy)!r}, 'w').write(repr(dict(os.environ)))",
    )
    run(["http://192.0.2.1/"], config_of())
    found = copy.read_text()
    assert "hush" not in found and "proxy" not in found and "NO_ALBUMENTATIONS_UPDATE" in found


def use_child(folder, monkeypatch, code):
    (folder / "rude_child.py").write_text(code)
    monkeypatch.setattr(img2dataset, "CHILD", "rude_child")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_settings_it_cannot_honour_are_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="does not read robots"):
        run(["http://192.0.2.1/"], config_of(download={"robots": "obey"}))


def test_the_time_of_a_shard_grows_with_rows_retries_and_timeouts():
    config = config_of(download={"retries": 1, "timeout_seconds": 10})
    assert img2dataset.shard_seconds(config, 32) == 60 + 2 * 2 * 10 + 32
