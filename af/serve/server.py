"""The server of live conversations: its page, calls by WebRTC, and a plain WebSocket for programs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import io
import json
import secrets
import signal
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import numpy as np
from jaxtyping import Float32

from af.data.container import MediaError, Notes
from af.data.images import decode_image
from af.errors import UserError
from af.ingest.crops import portrait_of
from af.ingest.landmarks import landmarker_is_there
from af.serve import protocol
from af.serve.controls import Controls
from af.serve.conversation import Conversation
from af.serve.service import Service
from af.serve.voices import can_speak

try:
    from aiohttp import WSMsgType, web
    from aiortc import RTCIceServer

    from af.serve.call import Call
except ImportError as missing:
    raise UserError(f"af live needs {missing.name}: pip install 'avatar-forcing[live]'") from None

LARGEST_UPLOAD: Final = 5 << 20  # bytes
MOST_PIXELS: Final = 25_000_000
_LARGEST_OFFER: Final = 64 << 10
_TIDY_S: Final = 2.0
_PAGE: Final = {"/": ("live.html", "text/html"), "/live.js": ("live.js", "text/javascript")} | {
    "/live.css": ("live.css", "text/css"),
    "/curves.js": ("curves.js", "text/javascript"),
}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data: blob:; media-src 'self' blob:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Access:
    """Who may use a server. Without a `token` only this machine may; a browser's page must come from this server or from
    one of `origins`.
    """

    token: str | None = None
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1")  # names a server without a token answers to


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


@dataclass
class LiveServer:
    """The web application: `app` for aiohttp. `voice`: a recording that the avatar can say, and which it repeats from the
    start if it is `talkative`; `ice`: STUN and TURN servers for both sides, as the browser's `RTCIceServer`.
    """

    service: Service
    access: Access = field(default_factory=Access)
    voice: Float32[np.ndarray, " S"] | None = None
    ice: Sequence[dict[str, str]] = ()
    talkative: bool = False

    def __post_init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self.app = web.Application(client_max_size=LARGEST_UPLOAD, middlewares=[self._guard])
        for path in _PAGE:
            self.app.router.add_get(path, self._page)
        self.app.router.add_get("/about", self._about)
        self.app.router.add_post("/call", self._call)
        self.app.router.add_post("/portrait", self._portrait)
        self.app.router.add_get("/socket", self._socket)
        self.app.on_shutdown.append(self._shut)

    # Who may come in.

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        try:
            self._check(request)
            response = await handler(request)
        except UserError as error:
            response = web.json_response({"error": str(error)}, status=400)
        except web.HTTPException as refused:
            text = {413: f"at most {LARGEST_UPLOAD >> 20} MB"}.get(refused.status, refused.text or refused.reason)
            response = web.json_response({"error": text}, status=refused.status)
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    def _check(self, request: web.Request) -> None:
        if odd := [name for name in ("Host", "Origin", "Authorization") if not request.headers.get(name, "").isascii()]:
            raise web.HTTPBadRequest(text=f"{odd[0]}: it has other characters than ASCII")
        host = _address(f"//{request.host}").hostname or ""
        if self.access.token is None and host not in self.access.hosts:  # another name for 127.0.0.1 in a foreign page
            raise web.HTTPForbidden(text=f"this server does not answer to {host}")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self.access.origins:
            there = _address(origin)
            if there.netloc != request.host or there.scheme not in ("http", "https"):
                raise web.HTTPForbidden(text=f"pages of {origin} may not use this server; --origin allows it")
        if self.access.token is not None and request.path not in _PAGE:  # the page itself holds no secret
            given = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.query.get("token", "")
            if not hmac.compare_digest(given.encode(), self.access.token.encode()):
                raise web.HTTPUnauthorized(text="the token is missing or wrong; use the address that af live printed")

    # What there is.

    async def _page(self, request: web.Request) -> web.Response:
        name, kind = _PAGE[request.path]
        return web.Response(
            text=(resources.files("af.serve") / "assets" / name).read_text("utf-8"), content_type=kind, charset="utf-8"
        )

    async def _about(self, request: web.Request) -> web.Response:
        avatar = self.service.avatar
        return web.json_response(
            {
                "ice": list(self.ice),
                "size": avatar.autoencoder.image_size,
                "block_frames": avatar.denoiser.layout.block_frames,
                "voice": self.voice is not None,
                "student": self.service.student is not None,
                "anchored": avatar.anchored,
                "replays": [] if self.service.replays is None else self.service.replays.listed,
                "recorded": self.service.recordings is not None,
                "text": can_speak(),
                "landmarks": landmarker_is_there(),
            }
        )

    async def _call(self, request: web.Request) -> web.Response:
        if (request.content_length or 0) > _LARGEST_OFFER:
            raise UserError(f"offer: at most {_LARGEST_OFFER} bytes")
        offer = (await request.read())[:_LARGEST_OFFER].decode("utf-8", "replace")
        conversation = await self._open()
        servers = [RTCIceServer(**server) for server in self.ice]
        call = Call(self.service, conversation, Controls(conversation, self.voice), servers)
        try:
            answer = await call.answer(offer)
        except BaseException:
            await call.end()
            raise
        if self.talkative and self.voice is not None:
            conversation.repeat(self.voice)
        name = secrets.token_urlsafe(16)
        self._calls = {n: c for n, c in self._calls.items() if c.conversation.closed is None} | {name: call}
        return web.json_response({"sdp": answer, "call": name})

    async def _portrait(self, request: web.Request) -> web.Response:
        call = self._calls.get(request.query.get("call", ""))
        if call is None or call.conversation.closed is not None:
            raise UserError("call: there is no such call (any more)")
        found, notes = await asyncio.to_thread(_uploaded, await request.read(), self.service.avatar)
        call.conversation.show(found)
        return web.json_response({"notes": [note.text for note in notes]})

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=protocol.LARGEST, heartbeat=20)
        if not socket.can_prepare(request).ok:
            raise UserError("socket: a WebSocket is expected here")
        images = request.query.get("images", "raw")
        protocol.require_images(images)
        conversation = await self._open()
        try:
            await socket.prepare(request)
            await self._talk(socket, conversation, images)
        finally:
            self.service.close(conversation, "the socket was closed")
        return socket

    async def _talk(self, socket: web.WebSocketResponse, conversation: Conversation, images: str) -> None:
        controls = Controls(conversation, self.voice)
        loop, new = asyncio.get_running_loop(), asyncio.Event()
        reports: list[dict[str, Any]] = []  # of blocks not sent yet: as many as the playout holds

        def listen(report: dict[str, Any]) -> None:
            def note() -> None:
                reports.append(report)
                del reports[:-4]
                new.set()

            loop.call_soon_threadsafe(note)

        async def send() -> None:
            while not reports or "closed" not in reports[-1]:
                await new.wait()
                new.clear()
                for shown in conversation.playout.take_all():
                    await socket.send_bytes(protocol.packed(shown, images))
                while reports:
                    report = reports.pop(0)
                    await socket.send_str(json.dumps(report))
                    if "closed" in report:
                        await socket.close(message=report["closed"].encode()[:120])
                        return

        conversation.listeners.append(listen)
        sending = asyncio.create_task(send())
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    answer = await controls(message.data)
                else:
                    answer = protocol.receive(message.data, conversation)
                if answer is not None:
                    await socket.send_str(json.dumps(answer))
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending

    async def _open(self) -> Conversation:
        return await asyncio.to_thread(self.service.open)

    async def _shut(self, _: web.Application) -> None:
        for call in list(self._calls.values()):
            await call.end("the server is stopping")


def _address(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:
        raise web.HTTPBadRequest(text=f"{text}: no address") from None


def _uploaded(data: bytes, avatar: Any) -> tuple[np.ndarray, Notes]:
    """An uploaded image as a portrait, decoded as `af ingest` does; its middle if no face is found."""
    name, notes = Path("portrait"), Notes()
    frame = decode_image(io.BytesIO(data), name, notes, MOST_PIXELS)
    if frame is None:
        raise UserError("portrait: not an image that can be read: save it as PNG or JPEG")
    size = avatar.autoencoder.image_size
    try:
        return portrait_of(frame, name, size, notes=notes), notes
    except MediaError as error:
        if error.reason != "no_face":
            raise
        notes.add("faces", "no face found: the middle of the image is used")
        return portrait_of(frame, name, size, find_face=False, notes=notes), notes


def ice_server(url: str) -> dict[str, str]:
    """A STUN or TURN server from `stun:HOST:PORT` or `turn:USER:PASSWORD@HOST:PORT`. Raises UserError for others."""
    kind, _, rest = url.partition(":")
    who, at, place = rest.rpartition("@")
    user, _, password = who.partition(":")
    if kind in ("stun", "turn", "turns") and place and bool(at) == (kind != "stun"):
        return {"urls": f"{kind}:{place}"} | ({"username": user, "credential": password} if at else {})
    raise UserError(f"--ice {url}: give stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT")


def tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """A server's TLS from its files; None without. Raises UserError for files that do not fit."""
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"--tls-certificate {certificate}: cannot be used with its key ({error})") from None
    return context


async def serve(
    server: LiveServer, host: str, port: int, security: ssl.SSLContext | None, started: Callable[[str], None]
) -> None:
    """Serve until cancelled, or until SIGTERM; `started` gets the address when it is open. Raises UserError when it cannot be
    opened.
    """
    stopped, tidying = asyncio.Event(), asyncio.create_task(_tidy(server.service))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)  # what is recorded gets to the disk
    runner = web.AppRunner(server.app, handle_signals=False, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=security)
        try:
            await site.start()
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: cannot be opened ({error.strerror or error})") from None
        assert site._server is not None
        bound = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        shown = f"[{host}]" if ":" in host else host
        ending = "" if server.access.token is None else f"?token={server.access.token}"
        started(f"{'http' if security is None else 'https'}://{shown}:{bound}/{ending}")
        await stopped.wait()
    finally:
        tidying.cancel()
        gc.unfreeze()
        server.service.stop()
        await runner.cleanup()


async def _tidy(service: Service) -> None:
    """Free the memory of conversations that have ended. They are in cycles of few objects with large buffers, and the
    collector, which counts objects, would come late; models and modules are left out, so that it takes milliseconds.
    """
    gc.collect()
    gc.freeze()
    ended = service.ended
    while True:
        await asyncio.sleep(_TIDY_S)
        if service.ended != ended:
            ended = service.ended
            gc.collect()
