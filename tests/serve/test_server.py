"""The server with clients in one process: a program by WebSocket, and aiortc in a browser's place."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestServer
from aiortc import RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack
from PIL import Image

from af.clock import SAMPLE_RATE, SAMPLES_PER_FRAME, frames_to_samples
from af.errors import UserError
from af.forcing.guidance import Guidance
from af.pipeline.avatar import Avatar
from af.serve.call import _packets
from af.serve.client import connect
from af.serve.controls import Controls
from af.serve.conversation import Conversation
from af.serve.limits import Limits
from af.serve.protocol import from_pcm, packed, pcm, unpacked
from af.serve.queues import Shown
from af.serve.server import Access, LiveServer, ice_server, is_loopback, serve, tls
from af.serve.service import Service
from af.serve.settings import Settings
from tests.serve.leaving import all_have_left
from tests.toy_avatar import SIZE, recording

SAMPLING = {"steps": 1, "guidance": Guidance(audio=1, user=0)}


def run(
    avatar: Avatar,
    work: Callable[[Any, LiveServer], Awaitable[None]],
    access: Access | None = None,
    limits: Limits | None = None,
) -> None:
    """`work(address, server)` against a server of its own."""

    async def main() -> None:
        service = Service(avatar, recording()["user_frames"][0], Settings(SAMPLING), limits or Limits(conversations=2))
        server = LiveServer(service, access or Access())
        service.start()
        try:
            async with TestServer(server.app, skip_url_asserts=True) as listening:
                await asyncio.wait_for(work(str(listening.make_url("")).rstrip("/"), server), 60)
        finally:
            service.stop()

    asyncio.run(main())


def test_a_program_talks_by_websocket(avatar: Avatar) -> None:
    recorded = recording(frames=40)

    async def work(address: str, server: LiveServer) -> None:
        shown: list[Shown] = []
        async with connect(address) as client:
            assert (client.size, client.block_frames) == (SIZE, 5)
            await client.do("act", what="smile")
            await client.do("user", user="camera")
            await client.do("change", barge_in=False)
            await client.say(recorded["avatar_audio"])

            async def speak() -> None:
                for n in range(40):
                    await client.hear(recorded["user_audio"][frames_to_samples(n) : frames_to_samples(n + 1)])
                    await client.see(recorded["user_frames"][n])
                    await asyncio.sleep(0.04)

            speaking = asyncio.create_task(speak())
            async for frame in client.frames():
                shown.append(frame)
                if len(shown) == 30:
                    break
            await speaking
            assert [frame.index for frame in shown] == list(range(30))
            assert np.std([frame.image for frame in shown], axis=0).max() > 0
            (conversation,) = server.service.conversations
            while not np.array_equal(conversation.view, recorded["user_frames"][39]):  # within the test's time
                await client.see(recorded["user_frames"][39])
                await asyncio.sleep(0.04)
            voice = np.concatenate([frame.voice for frame in shown])
            # from a frame on, what was said
            silent = int(np.argmax(np.abs(voice) > 0))
            heard = voice[silent : silent + 20 * SAMPLES_PER_FRAME]
            np.testing.assert_allclose(heard, recorded["avatar_audio"][: len(heard)], atol=1e-4)
            assert any(report.get("budget", {}).get("waiting") == 200 for report in client.reports)
            assert not any("error" in report for report in client.reports)
            assert not any(
                {"late_frames", "left_out_frames"} & set(report.get("faults", ())) for report in client.reports
            )
        await all_have_left(server, 2)

    run(avatar, work)


def test_what_an_ended_conversation_held_is_freed(avatar: Avatar) -> None:
    """Without the collector's own counting, which would come after many of them."""

    async def main() -> None:
        service = Service(avatar, recording()["user_frames"][0], Settings(SAMPLING), Limits(conversations=1))
        service.start()
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(LiveServer(service, Access()), "127.0.0.1", 0, None, address.set_result))
        gc.disable()
        try:
            async with connect(await address) as client:
                await anext(client.frames())
                held = weakref.ref(service.conversations[0])
            async with asyncio.timeout(20):
                while held() is not None:
                    await asyncio.sleep(0.1)
        finally:
            gc.enable()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(main())


class Hum(AudioStreamTrack):
    """A quiet tone."""

    async def recv(self) -> Any:
        frame = await super().recv()
        sound = 1600 * np.sin(0.3 * np.arange(frame.pts, frame.pts + frame.samples))
        frame.planes[0].update(sound.astype(np.int16).tobytes())
        return frame


def test_a_browsers_call(avatar: Avatar) -> None:
    """Video and voice come from one clock, reports and controls pass the data channel, the end is noticed."""

    async def work(address: str, server: LiveServer) -> None:
        server.voice = (0.3 * np.sin(np.arange(10 * SAMPLE_RATE) * 0.3)).astype(np.float32)
        peer = RTCPeerConnection(RTCConfiguration([], bundlePolicy=RTCBundlePolicy.MAX_COMPAT))
        channel = peer.createDataChannel("live")
        peer.addTransceiver("audio", "sendrecv")
        peer.addTransceiver("video", "sendrecv")
        peer.addTransceiver("video", "recvonly")
        peer.addTransceiver(Hum(), "sendonly")
        tracks: list[Any] = []
        peer.on("track", tracks.append)
        messages: list[dict] = []
        channel.on("message", lambda text: messages.append(json.loads(text)))
        await peer.setLocalDescription(await peer.createOffer())
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{address}/call", data=peer.localDescription.sdp) as response:
                answer = await response.json()
            await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
            assert [track.kind for track in tracks] == ["audio", "video", "video"]
            streams = [line.split()[0] for line in answer["sdp"].splitlines() if line.startswith("a=msid:")]
            assert streams[0] == streams[1] != streams[2]  # the voice is kept in step with the avatar
            sound, video, user = tracks
            frames = [await asyncio.wait_for(video.recv(), 20) for _ in range(12)]
            assert all(frame.width == frame.height == 192 for frame in frames)
            steps = np.diff([float(frame.pts * frame.time_base) for frame in frames]) / 0.04
            np.testing.assert_allclose(steps, np.maximum(1, np.round(steps)))  # a busy machine loses some
            assert (await user.recv()).width == 192

            async def louder(least: float) -> bool:
                for _ in range(300):
                    if float(np.abs((await sound.recv()).to_ndarray()).max()) > 32768 * least:
                        return True
                return False

            assert await louder(0.02)  # what somebody says for it
            channel.send(json.dumps({"do": "play"}))
            channel.send(json.dumps({"do": "act", "what": "smile"}))
            channel.send("nonsense")
            assert await louder(0.15)
            while not any("error" in message for message in messages):
                await sound.recv()
            assert any("settings" in message for message in messages)
            assert any("smile" in message.get("user", {}) for message in messages)
            image = io.BytesIO()
            Image.fromarray(recording(3, 1)["user_frames"][0]).resize((64, 64)).save(image, "PNG")
            where = f"{address}/portrait?call={answer['call']}"
            async with session.post(where, data=image.getvalue()) as response:
                assert response.status == 200
                assert "the middle of the image" in " ".join((await response.json())["notes"])
            for wrong, text in ((b"GIF89a", "portrait"), (b"x" * (5 << 20) + b"x", "at most 5 MB")):
                async with session.post(where, data=wrong) as response:
                    assert response.status in (400, 413)
                    assert text in (await response.json())["error"]
            await peer.close()
        await all_have_left(server, 10)

    run(avatar, work)


def test_only_who_may(avatar: Avatar) -> None:
    async def work(address: str, server: LiveServer) -> None:
        async with aiohttp.ClientSession() as session:

            async def status(path: str = "/about", method: str = "GET", **headers: str) -> int:
                async with session.request(method, address + path, headers=headers) as response:
                    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
                    return response.status

            assert await status("/") == 200
            assert await status() == 401
            assert await status(Authorization="Bearer wrong") == 401
            assert await status("/socket") == 401
            assert await status("/call", "POST") == 401
            good = {"Authorization": "Bearer right"}
            assert await status(**good) == 200
            assert await status("/about?token=right") == 200
            assert await status(Origin="http://evil.example", **good) == 403
            assert await status(Origin="null", **good) == 403
            assert await status(Origin=address, **good) == 200
            assert await status(Origin="https://mine.example", **good) == 200
            assert await status("/call", "POST", **good) == 400
        with pytest.raises(UserError, match="token"):
            async with connect(address):
                pass
        async with connect(address, token="right"), connect(address, token="right"):
            with pytest.raises(UserError, match="refused"):
                async with connect(address, token="right"):
                    pass

    run(avatar, work, Access("right", ["https://mine.example"]))


def test_a_page_that_names_this_machine_otherwise_is_refused(avatar: Avatar) -> None:
    async def work(address: str, server: LiveServer) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{address}/about", headers={"Host": "evil.example"}) as response,
        ):
            assert response.status == 403

    run(avatar, work)


@pytest.fixture
def conversation(avatar: Avatar) -> Conversation:
    return Service(avatar, recording()["user_frames"][0], Settings(SAMPLING)).open()


def test_what_a_client_changes(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    def do(**message: Any) -> dict[str, Any]:
        return asyncio.run(Controls(conversation)(json.dumps(message))) or {}

    changed = do(do="change", signals={"user_audio": False}, steps=3, audio=2.5)["settings"]
    assert changed["signals"] == {"avatar_audio": True, "user_audio": False, "user_motion": True}
    assert (changed["steps"], changed["audio"], changed["user"]) == (3, 2.5, 0)
    assert do(do="change", anchor=True)["settings"]["anchor"]
    assert conversation.settings.sampling["anchor"].pull
    assert not do(do="change", anchor=False)["settings"]["anchor"]
    for wrong, text in (
        ({"do": "change", "anchor": 1}, "true or false"),
        ({"do": "change", "student": True}, "--student FOLDER"),
        ({"do": "replay", "number": "1"}, "whole number"),
        ({"do": "chnge"}, "did you mean change"),
        ({"do": "change", "steps": 1000}, "steps"),
        ({"do": "change", "signals": {"user_smell": False}}, "user_smell"),
        ({"do": "play"}, "--voice FILE"),
        ({"do": "say", "text": ""}, "1 to 500 characters"),
        ({"do": "act", "what": "jump"}, "jump"),
    ):
        assert text in do(**wrong)["error"]

    async def slowly(text: str) -> np.ndarray:
        await asyncio.sleep(0.1)
        return np.zeros(SAMPLE_RATE, np.float32)

    monkeypatch.setattr("af.serve.controls.spoken", slowly)

    async def twice() -> list[dict[str, Any] | None]:
        controls, text = Controls(conversation), json.dumps({"do": "say", "text": "Hello"})
        return await asyncio.gather(controls(text), controls(text))

    assert any("still being turned into speech" in (answer or {}).get("error", "") for answer in asyncio.run(twice()))
    conversation.change(guidance=Guidance.conditional())
    assert "without guidance" in do(do="change", audio=2)["error"]


def test_a_message_is_done_as_a_whole_or_not_at_all(avatar: Avatar) -> None:
    """What is asked for together with a student is asked of the student."""
    controls = Controls(Service(avatar, recording()["user_frames"][0], Settings(SAMPLING), student=avatar).open())

    def do(**message: Any) -> dict[str, Any]:
        return asyncio.run(controls(json.dumps({"do": "change", **message}))) or {}

    before = controls.settings()
    for wrong, text in (({"steps": 1000}, "steps"), ({"signals": 1}, "signals"), ({"audio": 2}, "without guidance")):
        assert text in do(student=True, barge_in=False, **wrong)["error"]
        assert controls.settings() == before
    changed = do(student=True, steps=3)["settings"]
    assert (changed["student"], changed["steps"], changed["audio"]) == (True, 3, None)
    assert do(student=False)["settings"] == before
    controls.conversation.make_changes()
    assert do(student=True)["settings"] == changed


def test_beside_the_joint_guidance_a_client_changes_what_the_model_began_with(avatar: Avatar) -> None:
    settings = Settings({"steps": 1, "guidance": Guidance(audio=0.5, user=0, joint=1)})
    controls = Controls(Service(avatar, recording()["user_frames"][0], settings).open())

    def do(**message: Any) -> dict[str, Any]:
        return asyncio.run(controls(json.dumps({"do": "change", **message}))) or {}

    for audio in (0, 2):  # and back
        changed = do(audio=audio)["settings"]
        assert (changed["audio"], changed["user"]) == (audio, None)
    assert "without guidance by user" in do(user=1)["error"]
    assert controls.conversation.settings.sampling["guidance"] == Guidance(audio=2, user=0, joint=1)


@pytest.mark.parametrize(("images", "error"), [("raw", 0), ("jpeg", 12)])
def test_frames_survive_the_wire(images: str, error: int) -> None:
    x = np.linspace(0, 255, 16).astype(np.uint8)
    image = np.stack([np.tile(x, (16, 1)), np.tile(x[:, None], (1, 16)), np.full((16, 16), 90, np.uint8)], -1)
    voice = np.linspace(-1, 0.9, SAMPLES_PER_FRAME, dtype=np.float32)
    found = unpacked(packed(Shown(7, image, voice), images), 16)
    assert found.index == 7
    assert np.abs(found.image.astype(int) - image).max() <= error
    np.testing.assert_allclose(found.voice, voice, atol=2e-5)


def test_a_call_rounds_its_voice_as_the_wire_does() -> None:
    """What is too loud is clipped, and does not change its sign."""
    voice = np.linspace(-1.2, 1.2, SAMPLES_PER_FRAME, dtype=np.float32)
    heard = np.concatenate([packet.to_ndarray()[0] for packet in _packets(voice, 0)])
    assert heard.tobytes() == pcm(voice)
    np.testing.assert_allclose(from_pcm(heard.tobytes()), voice.clip(-1, 1), atol=4e-5)
    assert not any(packet.to_ndarray().any() for packet in _packets(None, 0))


def test_network_options(tmp_path) -> None:
    assert ice_server("stun:stun.example:3478") == {"urls": "stun:stun.example:3478"}
    assert ice_server("turn:me:pa:ss@h:1") == {"urls": "turn:h:1", "username": "me", "credential": "pa:ss"}
    for wrong in ("stun:", "http://x", "turn:h:1", "stun:a@b"):
        with pytest.raises(UserError, match="--ice"):
            ice_server(wrong)
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [
        *[True] * 3, False, False,
    ]  # fmt: skip
    assert tls(None, None) is None
    (tmp_path / "x.pem").write_text("no certificate")
    with pytest.raises(UserError, match=r"x\.pem: cannot be used"):
        tls(tmp_path / "x.pem", None)
