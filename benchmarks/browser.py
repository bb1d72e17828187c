"""A headless Chromium with a fake camera and microphone, driven by its debugging sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from af.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_OPTIONS = (
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
    "--disable-background-timer-throttling",  # all windows play, whichever is in front
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
)


class Page:
    """One page: `run` evaluates JavaScript, `picture` takes a screenshot."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, name: str) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.name = name
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


class Browser:
    """Windows of one browser, each with one page."""

    def __init__(self, session: aiohttp.ClientSession, control: Page, port: str) -> None:
        self._session, self._control, self._port = session, control, port

    async def open(self, address: str) -> Page:
        """Another window."""
        made = await self._control.ask("Target.createTarget", url="about:blank", newWindow=True)
        return await self.page(made["targetId"], address)

    async def page(self, name: str, address: str) -> Page:
        """The page of a window, sent to `address`."""
        where = f"http://127.0.0.1:{self._port}/devtools/page/{name}"
        page = Page(await self._session.ws_connect(where, max_msg_size=0), name)
        for domain in ("Runtime", "Page"):
            await page.ask(f"{domain}.enable")
        await page.ask("Page.navigate", url=address)
        return page

    async def kill(self, page: Page) -> None:
        """End a page's process without a farewell."""
        with contextlib.suppress(Exception):  # it answers no more
            await asyncio.wait_for(page.ask("Page.crash"), 2)


@contextlib.asynccontextmanager
async def browser(folder: Path, *more: str) -> AsyncIterator[Browser]:
    """A browser of its own, with its profile in `folder`. Raises UserError without Chromium."""
    if CHROMIUM is None:
        raise UserError("no Chromium or Chrome is installed")
    profile = folder / "profile"
    command = (CHROMIUM, *_OPTIONS, *more, f"--user-data-dir={profile}", "about:blank")
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
    try:
        found = profile / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not (found.is_file() and found.read_text().count("\n")):
                await asyncio.sleep(0.1)
        port, path = found.read_text().split()
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{port}{path}") as socket:
            yield Browser(session, Page(socket, "browser"), port)
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def opened(address: str, folder: Path, *more: str) -> AsyncIterator[Page]:
    """The page at `address` in a browser of its own."""
    async with browser(folder, *more) as windows:
        yield await windows.open(address)
