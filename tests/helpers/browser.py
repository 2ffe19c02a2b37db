"""Headless Chromium, driven over its DevTools protocol on loopback, to do what a person does on a page."""

import asyncio
import base64
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SECONDS = 60.0


class Browser:
    """One tab. Use as an asynchronous context manager.

    Args:
        profile: an empty folder.
        width: of the window in pixels.
        height: of the window in pixels.

    Attributes:
        urls: every one that the page has asked for, web sockets too.
        console: errors that the page has told.
    """

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        self.profile, self.size = profile, (width, height)
        self.urls: list[str] = []
        self.console: list[str] = []
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future] = {}

    async def __aenter__(self) -> "Browser":
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-background-networking", "--remote-debugging-port=0"]
        command += [
            f"--user-data-dir={self.profile}",
            f"--window-size={self.size[0]},{self.size[1]}",
        ]
        self._process = await asyncio.create_subprocess_exec(
            *command, "about:blank", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(SECONDS):
                address = None
                while address is None:
                    line = await self._process.stderr.readline()
                    assert line, "chromium ended"
                    address = re.search(rb"listening on (ws://\S+)", line)
            self._drain = asyncio.create_task(self._process.stderr.read())
            self._session = aiohttp.ClientSession()
            self._socket = await self._session.ws_connect(
                address[1].decode(), max_msg_size=0, autoping=True
            )
            self._reader = asyncio.create_task(self._read())
            self._tab = None
            target = await self.send("Target.createTarget", url="about:blank")
            told = await self.send("Target.attachToTarget", **target, flatten=True)
            self._tab = told["sessionId"]
            for domain in ("Page", "Network", "Runtime", "DOM", "Log"):
                await self.send(f"{domain}.enable")
        except BaseException:
            self._process.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        self._process.kill()
        await self._process.wait()
        await self._session.close()

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            method, params = told.get("method"), told.get("params", {})
            if told.get("id") in self._waiting:
                self._waiting.pop(told["id"]).set_result(told)
            elif method == "Network.requestWillBeSent":
                self.urls.append(params["request"]["url"])
            elif method == "Network.webSocketCreated":
                self.urls.append(params["url"])
            elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
                self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    async def send(self, method: str, **params: object) -> dict:
        """Call a method of the protocol."""
        number = next(self._numbers)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        if self._tab is not None:
            message["sessionId"] = self._tab
        await self._socket.send_json(message)
        told = await asyncio.wait_for(answer, SECONDS)
        assert "error" not in told, f"{method}: {told['error']}"
        return told["result"]

    async def open(self, url: str) -> None:
        """Go to a page."""
        await self.send("Page.navigate", url=url)

    async def run(self, script: str) -> object:
        """The value of an expression in the page."""
        told = await self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, f"{script}: {told['exceptionDetails']}"
        return told["result"].get("value")

    async def wait(self, script: str, seconds: float = SECONDS) -> object:
        """The value of an expression, as soon as it is true."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not (value := await self.run(script)):
            if asyncio.get_running_loop().time() > deadline:
                text = await self.run("document.body.innerText")
                raise AssertionError(f"never came: {script}; the page says: {text}")
            await asyncio.sleep(0.1)
        return value

    async def drop(self, files: list[Path], number: int = 0) -> None:
        """Give files to the page's upload of that number, once it takes some."""
        await self.wait(f"document.querySelectorAll('input[type=file]').length > {number}")
        root = await self.send("DOM.getDocument")
        found = await self.send(
            "DOM.querySelectorAll", nodeId=root["root"]["nodeId"], selector="input[type=file]"
        )
        node = found["nodeIds"][number]
        await self.send("DOM.setFileInputFiles", nodeId=node, files=[str(f) for f in files])

    async def click(self, text: str) -> None:
        """Press the button or header that shows a text, maybe with an icon behind it."""
        await self.run(
            "[...document.querySelectorAll('button, [role=button]')].find(e => "
            f"e.innerText.split('\\n')[0].trim().toLowerCase() == {json.dumps(text.lower())}).click()"
        )

    async def type(self, label: str, text: str) -> None:
        """Write into the field with a label."""
        selector = json.dumps(f'[aria-label="{label}"]')
        await self.wait(f"document.querySelector({selector})?.getClientRects().length > 0")
        await self.run(f"document.querySelector({selector}).focus()")
        await self.send("Input.insertText", text=text)

    async def screenshot(self, path: Path) -> None:
        """Save what the window shows."""
        told = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))

    @property
    def hosts(self) -> set[str]:
        """Hosts that the page has asked."""
        return {urlsplit(url).hostname for url in self.urls if urlsplit(url).hostname}
