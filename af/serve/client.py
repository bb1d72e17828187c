"""A program's conversation with a running `af live`, by its plain WebSocket."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from af.errors import UserError
from af.serve import protocol
from af.serve.queues import Shown

try:
    import aiohttp
except ImportError:
    raise UserError("the client of af live needs aiohttp: pip install 'avatar-forcing[live]'") from None


class Client:
    """An open conversation; `connect` makes it. Send the user's voice and faces at playing speed."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, size: int, block_frames: int) -> None:
        self._socket, self.size, self.block_frames = socket, size, block_frames
        #: The newest reports and answers: budget, faults, curves, errors, and `closed` with the reason.
        self.reports: deque[dict[str, Any]] = deque(maxlen=64)

    async def hear(self, samples: Float32[np.ndarray, " S"]) -> None:
        """The user's voice: 16 kHz mono, in [-1, 1]."""
        await self._socket.send_bytes(bytes([protocol.USER_VOICE]) + protocol.pcm(samples))

    async def say(self, samples: Float32[np.ndarray, " S"]) -> None:
        """The avatar's voice, which may come faster than it is spoken."""
        await self._socket.send_bytes(bytes([protocol.AVATAR_VOICE]) + protocol.pcm(samples))

    async def see(self, face: UInt8[np.ndarray, "Y X 3"] | None) -> None:
        """The user's face crop, of `size` pixels; None while there is none. `do("user", user="camera")` comes first."""
        content = b"" if face is None else np.ascontiguousarray(face).tobytes()
        await self._socket.send_bytes(bytes([protocol.USER_FACE]) + content)

    async def do(self, what: str, /, **values: Any) -> None:
        """A control message (docs/live.md): `do("interrupt")`, `do("act", what="smile")`, `do("change", steps=4)`."""
        await self._socket.send_str(json.dumps({"do": what, **values}))

    async def frames(self) -> AsyncIterator[Shown]:
        """The avatar's frames with their voice, as they are finished, until the conversation is closed."""
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                yield protocol.unpacked(message.data, self.size)
            elif message.type is aiohttp.WSMsgType.TEXT:
                self.reports.append(json.loads(message.data))


@contextlib.asynccontextmanager
async def connect(address: str, token: str | None = None, images: str = "raw") -> AsyncIterator[Client]:
    """A conversation with the server at `address` (as `http://127.0.0.1:8765`). `images`: "raw", or "jpeg" for slow lines.

    Raises UserError when the server refuses.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        try:
            async with session.get(f"{address.rstrip('/')}/about") as answer:
                about = await answer.json()
            if "error" in about:
                raise UserError(f"{address}: {about['error']}")
            async with session.ws_connect(
                f"{address.rstrip('/')}/socket", params={"images": images}, max_msg_size=1 << 24
            ) as socket:
                yield Client(socket, about["size"], about["block_frames"])
        except aiohttp.WSServerHandshakeError as error:
            raise UserError(f"{address}: refused ({error.status}); perhaps all places are taken") from error
        except aiohttp.ClientConnectionError as error:
            raise UserError(f"{address}: no connection ({error})") from error
