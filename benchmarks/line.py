"""A bad line between a browser and `af live`: a proxy of the page whose calls go through a relay that loses and delays
packets, both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

_CANDIDATE = re.compile(r"^(a=candidate:\S+ \d+ udp \d+) (\S+) (\d+) typ host[^\r\n]*", re.MULTILINE | re.IGNORECASE)
Address = tuple[str, int]


class Line:
    """Loses a `loss` of 0 to 1 of the packets and delays each by 0 to `jitter_ms`, so that some overtake others."""

    def __init__(self, loss: float, jitter_ms: float) -> None:
        self.loss, self.jitter_ms = loss, jitter_ms
        self.sent = self.lost = 0
        self._random = random.Random(0)

    def carry(self, transport: asyncio.DatagramTransport, data: bytes, to: Address) -> None:
        """Send a packet, later or never."""
        self.sent += 1
        if self._random.random() < self.loss:
            self.lost += 1
            return

        def send() -> None:
            if not transport.is_closing():
                transport.sendto(data, to)

        asyncio.get_running_loop().call_later(self._random.uniform(0, self.jitter_ms) / 1000, send)

    async def relay(self, server: Address) -> tuple[Address, list[asyncio.DatagramTransport]]:
        """Where a browser reaches `server` through this line."""
        loop, host = asyncio.get_running_loop(), server[0]
        inside, outside = _End(self), _End(self)
        await loop.create_datagram_endpoint(lambda: inside, (host, 0))
        await loop.create_datagram_endpoint(lambda: outside, (host, 0))
        inside.other, outside.other, inside.peer, inside.only = outside, inside, server, True
        assert outside.transport is not None
        assert inside.transport is not None
        return outside.transport.get_extra_info("sockname")[:2], [inside.transport, outside.transport]


class _End(asyncio.DatagramProtocol):
    """One side of a relay: it sends to `peer`, which is whoever sent something last, or `only` the one it was given."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.other: _End | None = None
        self.peer: Address | None = None
        self.only = False
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        other = self.other
        if other is None or (not self.only and address[:2] == other.peer):  # the server tries the browser directly
            return
        if not self.only:
            self.peer = address[:2]
        if other.transport is not None and other.peer is not None:
            self._line.carry(other.transport, data, other.peer)


@contextlib.asynccontextmanager
async def proxy(address: str, line: Line) -> AsyncIterator[str]:
    """The address of a server whose pages are those of `address` and whose calls go through `line`."""
    ends: list[asyncio.DatagramTransport] = []

    async def pass_on(request: web.Request) -> web.Response:
        body, where = await request.read(), address.rstrip("/") + request.path_qs
        if request.path == "/call":  # the server is not to find the browser by itself: port 9 discards
            body = _CANDIDATE.sub(r"\1 127.0.0.1 9 typ host", body.decode()).encode()
        headers = {name: value for name, value in request.headers.items() if name != "Content-Length"}
        async with session.request(request.method, where, data=body, headers=headers) as response:
            found, status, kind = await response.read(), response.status, response.content_type
        if request.path == "/call" and status == 200:
            answer = json.loads(found)
            found = json.dumps(answer | {"sdp": await relayed(answer["sdp"])}).encode()
        return web.Response(body=found, status=status, content_type=kind)

    async def relayed(sdp: str) -> str:
        places: dict[Address, Address] = {}
        lines = []
        for text in sdp.splitlines():
            if found := _CANDIDATE.match(text):
                start, host, port = found[1], found[2], int(found[3])
                if ":" in host:
                    continue
                if (host, port) not in places:
                    places[host, port], made = await line.relay((host, port))
                    ends.extend(made)
                text = "{} {} {} typ host".format(start, *places[host, port])
            lines.append(text)
        return "".join(f"{text}\r\n" for text in lines)

    app = web.Application(client_max_size=8 << 20)
    app.router.add_route("*", "/{path:.*}", pass_on)
    runner = web.AppRunner(app, access_log=None)
    async with aiohttp.ClientSession(auto_decompress=True) as session:
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            assert site._server is not None
            yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"  # type: ignore[attr-defined]
        finally:
            for end in ends:
                end.close()
            await runner.cleanup()
