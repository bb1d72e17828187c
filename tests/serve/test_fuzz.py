"""Whatever comes from outside is done, or refused with a text; nothing is executed, and the server goes on."""

from __future__ import annotations

import asyncio
import io
import json
from types import SimpleNamespace
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import psutil
import pytest
from aiortc import RTCPeerConnection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from af.errors import UserError
from af.pipeline.avatar import Avatar
from af.serve.call import Call
from af.serve.controls import Controls
from af.serve.conversation import Conversation
from af.serve.protocol import receive
from af.serve.server import Access, LiveServer, _uploaded
from af.serve.service import Service
from af.serve.settings import Settings
from tests.serve.leaving import all_have_left
from tests.serve.test_server import SAMPLING, run
from tests.toy_avatar import SIZE, recording

QUICK = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture
def conversation(avatar: Avatar) -> Conversation:
    """One that can do everything."""
    replays = SimpleNamespace(open=lambda number: iter(()))
    service = Service(avatar, recording()["user_frames"][0], Settings(SAMPLING), student=avatar, replays=replays)  # type: ignore[arg-type]
    return service.open()


ANSWERS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["do", "what", "user", "text", "signals", "steps", "audio", "smile", "barge_in", "anchor", "student", "number"]
)
DOES = st.sampled_from(["steer", "act", "user", "change", "replay", "restart", "interrupt", "play", "none"])


MESSAGES = st.text() | st.dictionaries(KEYS, ANSWERS, max_size=4).flatmap(
    lambda found: DOES.map(lambda do: json.dumps({**found, "do": do}))
)


@settings(max_examples=100, **QUICK)
@given(message=MESSAGES)
def test_no_message_does_harm(conversation: Conversation, message: str) -> None:
    """Whatever a client sends is done or refused with a text."""
    answer = asyncio.run(Controls(conversation)(message))
    assert answer is None or isinstance(answer.get("error", ""), str)
    conversation._changes.clear()


@settings(max_examples=100, **QUICK)
@given(data=st.binary(max_size=3000))
def test_no_binary_message_does_harm(conversation: Conversation, data: bytes) -> None:
    answer = receive(data, conversation)
    assert answer is None or answer["error"]


@settings(max_examples=50, deadline=None)
@given(offer=st.text(max_size=300) | st.lists(st.sampled_from(
    ["v=0", "o=- 0 0 IN IP4 0.0.0.0", "s=-", "t=0 0", "m=audio 9 UDP/TLS/RTP/SAVPF 111", "a=mid:0", "a=sendrecv",
     "m=video 9 UDP/TLS/RTP/SAVPF 96", "a=rtpmap:96 VP8/90000", "a=ice-ufrag:x", "a=setup:actpass", "a=group:BUNDLE 0"]
)).map("\r\n".join))  # fmt: skip
def test_no_offer_does_harm(offer: str) -> None:
    async def work() -> None:
        ended: list[str] = []
        conversation = SimpleNamespace(listeners=[], closed=None, puppet=SimpleNamespace(size=16))
        service = SimpleNamespace(close=lambda _, why: ended.append(why))
        call = Call(service, conversation, SimpleNamespace())  # type: ignore[arg-type]
        with pytest.raises(UserError, match="offer"):
            await call.answer(offer)
        await call.end()
        assert ended

    asyncio.run(work())


def offered() -> list[str]:
    """The lines of an offer that fits."""

    async def work() -> str:
        peer = RTCPeerConnection()
        peer.createDataChannel("live")
        for kind in ("audio", "video", "video", "audio"):
            peer.addTransceiver(kind)
        sdp = (await peer.createOffer()).sdp
        await peer.close()
        return sdp

    return asyncio.run(work()).splitlines()


OFFER = offered()


@settings(max_examples=30, **QUICK)
@given(changes=st.lists(st.tuples(st.integers(0, len(OFFER) - 1), st.none() | st.text(max_size=30)), max_size=4))
def test_no_change_of_a_good_offer_does_harm(changes: list[tuple[int, str | None]]) -> None:
    lines: list[str | None] = list(OFFER)
    for place, text in changes:
        line = lines[place]
        lines[place] = None if text is None or line is None else line[: len(text)] + text

    async def work() -> None:
        conversation = SimpleNamespace(listeners=[], closed="at once", puppet=SimpleNamespace(size=16))
        service = SimpleNamespace(close=lambda *_: None)
        call = Call(service, conversation, SimpleNamespace())  # type: ignore[arg-type]
        said, before = "offer: ", set(psutil.Process().net_connections("udp"))
        try:
            assert "m=audio" in await call.answer("\r\n".join(line for line in lines if line is not None))
        except UserError as error:
            said = str(error)
        await call.end()
        assert said.startswith("offer: ")
        assert set(psutil.Process().net_connections("udp")) <= before  # nothing stays open

    asyncio.run(work())


def pictures() -> list[bytes]:
    """Good images of several formats."""
    files = []
    for kind in ("PNG", "JPEG", "GIF", "TIFF"):
        Image.fromarray(recording()["user_frames"][0]).save(file := io.BytesIO(), kind)
        files.append(file.getvalue())
    return files


@settings(max_examples=60, **QUICK)
@given(
    data=st.binary(max_size=200) | st.tuples(st.sampled_from(pictures()), st.integers(0, 400), st.binary(max_size=12)).map(
        lambda found: found[0][: found[1]] + found[2] + found[0][found[1] + len(found[2]) :]
    )
)  # fmt: skip
def test_no_upload_does_harm(data: bytes) -> None:
    said, face = "portrait: ", np.zeros((SIZE, SIZE, 3), np.uint8)
    try:
        face, _ = _uploaded(data, SimpleNamespace(autoencoder=SimpleNamespace(image_size=SIZE)))
    except UserError as error:
        said = str(error)
    assert said.startswith("portrait: ")
    assert face.shape == (SIZE, SIZE, 3)
    assert face.dtype == np.uint8


def test_messages_of_any_order_leave_the_server_to_others(avatar: Avatar) -> None:
    async def work(address: str, server: LiveServer) -> None:
        loop = asyncio.get_running_loop()

        async def send(messages: list[str | bytes]) -> None:
            async with aiohttp.ClientSession() as session, session.ws_connect(f"{address}/socket") as socket:
                for message in messages:
                    await (socket.send_str if isinstance(message, str) else socket.send_bytes)(message)  # type: ignore[operator]
                await socket.send_str("the last")
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT and "error" in json.loads(message.data):
                        break

        kinds = st.builds(lambda kind, rest: bytes([kind]) + rest, st.integers(0, 4), st.binary(max_size=900))

        @settings(max_examples=15, **QUICK)
        @given(st.lists(st.text(max_size=50) | kinds | MESSAGES, max_size=6))
        def fuzz(messages: list[str | bytes]) -> None:
            asyncio.run_coroutine_threadsafe(send(messages), loop).result(20)
            asyncio.run_coroutine_threadsafe(all_have_left(server, 5), loop).result(20)

        await asyncio.to_thread(fuzz)
        await send([])

    run(avatar, work)


HEADERS = ["Host", "Origin", "Authorization", "Cookie", "Upgrade", "Sec-WebSocket-Key"]


def test_no_header_opens_the_door(avatar: Avatar) -> None:
    """Bytes of any kind in the headers of a request without the token are refused, without an error in the server."""

    async def work(address: str, server: LiveServer) -> None:
        where, loop = urlsplit(address), asyncio.get_running_loop()

        async def ask(line: str, headers: list[tuple[str, bytes]]) -> bytes:
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            told = [f"{line} HTTP/1.1".encode()]
            told += [] if any(name == "Host" for name, _ in headers) else [f"Host: {where.netloc}".encode()]
            told += [name.encode() + b": " + value for name, value in headers]
            writer.write(b"\r\n".join([*told, b"Connection: close", b"", b""]))
            found = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            return found

        requests = st.sampled_from(
            ["GET /about", "POST /call", "GET /socket", "POST /portrait", "GET /about?token=%ff"]
        )
        values = st.binary(max_size=40).map(lambda value: value.translate(None, b"\r\n\0"))
        values |= st.sampled_from([b"Bearer ", b"Bearer \xff", b"[", b"http://[", b"//", b"null", b"1e9"])

        @settings(max_examples=60, **QUICK)
        @given(line=requests, headers=st.lists(st.tuples(st.sampled_from(HEADERS), values), max_size=3))
        def fuzz(line: str, headers: list[tuple[str, bytes]]) -> None:
            found = asyncio.run_coroutine_threadsafe(ask(line, headers), loop).result(20)
            assert found.split(b" ")[1][:1] == b"4", found
            assert b"Traceback" not in found

        await asyncio.to_thread(fuzz)
        assert (await ask("GET /about", [("Authorization", b"Bearer right")])).startswith(b"HTTP/1.1 200")

    run(avatar, work, Access("right"))
