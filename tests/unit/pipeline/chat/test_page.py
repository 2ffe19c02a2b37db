"""The chat page by a visitor's way through it, and in a real browser."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from PIL import Image

from data_prep.ports import held_port
from pipeline.chat.page import Page, _thumbnail
from pipeline.chat.serve import is_loopback
from pipeline.generation.generate import continue_prompts
from pipeline.generation.settings import Sampling
from pipeline.prompts import image_bytes
from pipeline.trained import open_trained
from tests.helpers.browser import CHROMIUM, Browser
from tests.helpers.command import exit_code
from tests.helpers.pictures import noise_picture


@pytest.fixture(scope="module")
def trained(trained_root):
    return open_trained(str(trained_root / "flamingo"))


@pytest.fixture
def picture():
    return image_bytes(noise_picture())


@contextlib.asynccontextmanager
async def visitor(models):
    from nicegui.testing import user_simulation

    async with user_simulation(root=lambda: Page(models).build()) as user:
        await user.open("/")
        await sees(user, "What does the model see?")
        yield user


async def upload(user, marker, name, data):
    from nicegui.elements.upload_files import SmallFileUpload

    (element,) = user.find(marker=marker).elements
    await element.handle_uploads([SmallFileUpload(name, "image/png", data)])


async def comes(condition):
    """Wait for what a click has set going."""
    for _ in range(2400):
        if condition():
            return
        await asyncio.sleep(0.05)
    assert condition()


async def sees(user, text):
    await user.should_see(text, retries=1200)


async def sees_no_more(user, text):
    await user.should_not_see(text, retries=2400)


async def ask(user):
    """Once what was asked before is answered: until then the button is off."""
    (button,) = user.find(marker="ask").elements
    await comes(lambda: button.enabled)
    user.find(marker="ask").click()


def texts(user, marker):
    return [element.text for element in user.find(marker=marker).elements]


def test_loopback_is_told_from_the_rest():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.1", "node17", "::")))


def test_a_file_that_is_no_image_is_a_grey_square():
    assert _thumbnail(b"nothing") == _thumbnail(b"GIF89a")
    assert _thumbnail(b"nothing").startswith("data:image/png;base64,")


def test_a_visitor_asks_two_checkpoints_and_is_told_what_is_missing(trained, picture):
    async def visit():
        async with visitor([trained, trained]) as user:
            await ask(user)
            await sees(user, "is dropped in")
            await upload(user, "images", "a.png", picture)
            await ask(user)
            (expected,) = continue_prompts(trained, [[picture]], Sampling())
            await comes(lambda: texts(user, "answer") == [expected or "(nothing)"] * 2)
            await sees_no_more(user, "is dropped in")

    asyncio.run(visit())


def test_a_visitor_takes_images_away_clears_fields_and_the_page(trained, picture):
    async def visit():
        async with visitor([trained]) as user:
            await upload(user, "images", "broken.png", b"nothing")
            await ask(user)
            await sees(user, "prompt broken.png: image 0 can be decoded")
            user.find(marker="away").click()
            await ask(user)
            await sees(user, "is dropped in")
            await upload(user, "images", "a.png", picture)
            await upload(user, "examples", "b.png", picture)
            await ask(user)
            await sees(user, "example b.png: has a text beside its image")
            (seed,) = user.find(marker="seed").elements
            seed.set_value(None)
            await ask(user)
            await sees(user, "Seed of the drawing: is a number")
            user.find(marker="clear").click()
            seed.set_value(0)
            await ask(user)
            await sees(user, "is dropped in")
            await sees_no_more(user, "has a text beside its image")

    asyncio.run(visit())


@contextlib.contextmanager
def served(run, *arguments):
    """A page served by the command, as a person does it: its first line on standard error, and its port."""
    with held_port() as port:
        yield from _serve(run, port, *arguments)


def _serve(run, port, *arguments):
    command = [sys.executable, "-m", "pipeline", "chat", str(run), "--port", str(port), *arguments]
    # The library behaves otherwise where it sees pytest's own variable.
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    environment["OMP_NUM_THREADS"] = "1"
    server = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        told = ""
        while f"http://{'127.0.0.1' if not arguments else ''}" not in told:
            line = server.stderr.readline()
            assert line, told
            told += line
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield told, port
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server.stderr.close()


@pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="needs chromium, see .ci/system-packages"
)
def test_a_person_in_a_browser_gets_what_generate_says_and_the_page_asks_no_other_host(
    trained_root, trained, picture, tmp_path
):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    files[0].write_bytes(picture)
    other = Image.new("RGB", (40, 40), "red")
    other.save(files[1])
    parts = [files[1].read_bytes(), "a red star", picture, "two"]
    (expected,) = continue_prompts(trained, [parts], Sampling())

    async def visit(port):
        async with Browser(tmp_path / "profile") as browser:
            await browser.open(f"http://127.0.0.1:{port}/")
            await browser.wait("document.querySelectorAll('input[type=file]').length == 2")
            await browser.wait("document.body.innerText.includes('flamingo, step 6')")
            await browser.click("ask")
            await browser.wait("document.body.innerText.includes('drop an image in first')")
            await browser.drop(files[:1])
            await browser.wait("document.images.length == 1")
            # The first upload is made anew when it has given its file away.
            await browser.wait("document.querySelectorAll('input[type=file]').length == 2")
            await browser.click("Examples in front (few-shot)")
            await browser.drop(files[1:], number=1)
            await browser.type("Its text", "a red star")
            await browser.type("Beginning of the text (empty: a caption)", "two")
            await asyncio.sleep(0.5)  # what is typed is on its way
            await browser.click("ask")
            if expected:
                await browser.wait("document.body.innerText.includes('Bright is where it looked')")
                await browser.wait("[...document.images].some(i => i.naturalWidth > 160)")
            # Six steps of training say any bytes: innerText would make spaces of tabs.
            shown = "[...document.querySelectorAll('.text-xl')].map(e => e.textContent).join()"
            await browser.wait(f"{shown} != '...' && {shown} != ''")
            assert await browser.run(shown) == (expected or "(nothing)")
            assert browser.hosts == {"127.0.0.1"} and len(browser.urls) > 5
            assert any(url.startswith("ws://") for url in browser.urls)
            assert browser.console == []

    with served(trained_root / "flamingo") as (told, port):
        assert "password" not in told
        page = f"http://127.0.0.1:{port}/"
        with urllib.request.urlopen(page, timeout=120) as answer:
            policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "connect-src 'self'" in policy
        asyncio.run(visit(port))
        # A host whose name was pointed here is not answered.
        with pytest.raises(urllib.error.HTTPError) as refused:
            request = urllib.request.Request(page, headers={"Host": "elsewhere.example"})
            urllib.request.urlopen(request, timeout=120)
        assert refused.value.code == 400


def test_another_address_than_loopback_is_said_aloud(trained_root):
    with served(trained_root / "flamingo", "--host", "0.0.0.0") as (told, port):
        assert (
            f"everyone who reaches 0.0.0.0:{port} can use this page, there is no password" in told
        )


def refused(monkeypatch, *arguments):
    return exit_code(monkeypatch, "chat", *arguments)


def test_without_its_library_the_command_says_what_to_install(monkeypatch, trained_root, capsys):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert refused(monkeypatch, trained_root / "flamingo", "--port", "0") == 2
    assert 'pip install "roseate[chat]"' in capsys.readouterr().err


def test_all_that_is_wrong_is_said_before_a_model_loads(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert refused(monkeypatch, "nowhere", "neither", "--port", port) == 2
    told = capsys.readouterr().err
    assert "3 problems" in told and "is an address of this machine that is free" in told
    assert "'nowhere'" in told and "'neither'" in told
