"""A headless Chromium with a fake camera and microphone, driven by its debugging socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.browser import CHROMIUM

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
)


class Page:
    """One page: `run` evaluates JavaScript, `picture` takes a screenshot."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.errors: list[str] = []

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(60):
            while True:
                message = await self._socket.receive_json()
                if message.get("method") == "Runtime.exceptionThrown":
                    self.errors.append(str(message["params"]["exceptionDetails"].get("exception", message["params"])))
                if message.get("id") == number:
                    assert "error" not in message, message
                    return message["result"]

    async def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        answer = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float = 30) -> None:
        """Wait for an expression to be true and without an error."""
        for _ in range(int(seconds * 10)):
            if await self.run(f"(() => {{ try {{ return Boolean({script}); }} catch {{ return false; }} }})()"):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {script}; {await self.run('document.body.innerText')}")

    async def size(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """The window's size, and the user's preferred colours."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[feature])

    async def picture(self, path: Path) -> None:
        """A PNG of the whole page."""
        answer = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextlib.asynccontextmanager
async def opened(address: str, folder: Path, *more: str) -> AsyncIterator[Page]:
    """The page at `address` in a browser of its own."""
    profile = folder / "profile"
    command = (str(CHROMIUM), *OPTIONS, *more, f"--user-data-dir={profile}", "about:blank")
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
    try:
        port = profile / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not (port.is_file() and port.read_text().count("\n")):
                await asyncio.sleep(0.1)
        where = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
        async with aiohttp.ClientSession() as session:
            async with session.get(where) as response:
                pages = [target for target in await response.json() if target["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Runtime", "Page"):
                    await page.ask(f"{domain}.enable")
                await page.ask("Page.navigate", url=address)
                yield page
    finally:
        process.terminate()
        await process.wait()
