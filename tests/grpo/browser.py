"""A headless Chromium that a test opens pages in, driven over the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
START_S, ANSWER_S = 60, 30
READY = "document.documentElement?.dataset.ready === 'yes' || document.getElementById('fault')?.hidden === false"


def chromium() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page of a browser. `troubles` are its uncaught errors and console messages of level error or warning, in order."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.troubles: list[str] = []
        self.requests: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if (number := said.get("id")) in self._waiting:
                self._waiting.pop(number).set_result(said)
            elif said.get("method") == "Runtime.exceptionThrown":
                self.troubles.append(json.dumps(said["params"]["exceptionDetails"]))
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] in ("error", "warning"):
                self.troubles.append(said["params"]["entry"]["text"])
            elif said.get("method") == "Page.javascriptDialogOpening":
                self.troubles.append(f"a dialog: {said['params']['message']}")
            elif said.get("method") == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        said = await asyncio.wait_for(answer, ANSWER_S)
        assert "error" not in said, said
        return said["result"]

    async def open(self, path: Path, *, address: str = "", width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page of ours, and wait until it has drawn itself."""
        await self.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])
        await self.command("Page.navigate", url="about:blank")
        await self.command("Page.navigate", url=path.resolve().as_uri() + address)
        async with asyncio.timeout(ANSWER_S):
            while not await self.value(READY):
                await asyncio.sleep(0.05)

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to."""
        said = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        said = await self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(said["data"]))


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A browser of its own with an empty profile, gone at the end."""
    name = chromium()
    assert name is not None, "ask chromium() before"
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage")
        process = await asyncio.create_subprocess_exec(
            name,
            *options,
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
            env=os.environ | {"TMPDIR": profile},  # what a killed browser leaves goes with its profile
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(await _address(session, Path(profile)), max_msg_size=0) as socket,
            ):
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                for area in ("Page", "Runtime", "Log", "Network"):
                    await page.command(f"{area}.enable")
                yield page
                listening.cancel()
        finally:
            process.terminate()
            await process.wait()


async def _address(session: aiohttp.ClientSession, profile: Path) -> str:
    """Where the browser's only page can be talked to, once it says so."""
    async with asyncio.timeout(START_S):
        while not (port_file := profile / "DevToolsActivePort").exists() or not port_file.read_text():
            await asyncio.sleep(0.05)
        port = port_file.read_text().splitlines()[0]
        while True:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                for target in await answer.json(content_type=None):
                    if target["type"] == "page":
                        return target["webSocketDebuggerUrl"]
            await asyncio.sleep(0.05)
